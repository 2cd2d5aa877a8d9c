# A shell script as an agent: a model answers it, a person looks at that, and its step is done once.
#
#   fcrun import --packages curl agent
#   perdure run --image agent --memory 256m -- sh -c "$(cat examples/agent.sh)"
#   perdure approve RUN --comment "fine"
set -eu
ask() {
    curl -sS --fail-with-body "$OPENAI_BASE_URL/chat/completions" -H "Authorization: Bearer $OPENAI_API_KEY" \
        -H "Content-Type: application/json" -d "{\"messages\": [{\"role\": \"user\", \"content\": \"$1\"}]}" |
        perdure-guest get choices 0 message content
}

ask "In one sentence: what do owls hunt?" > report.txt
if comment=$(perdure-guest wait approval "Publish the report?" --show report.txt --timeout 3d); then
    perdure-guest step publish -- tee published.txt < report.txt
    perdure-guest emit published "$comment"
else
    echo "not published"
fi
