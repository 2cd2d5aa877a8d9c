# A long job that sleeps half-way: ffmpeg encodes, and a person decides in its middle whether it is worth the rest.
#
#   fcrun import --packages ffmpeg encode
#   perdure run --image encode --memory 1g -- sh -c "$(cat examples/encode.sh)"
#   perdure approve RUN
#
# While a person looks, the machine sleeps, and ffmpeg with it: its threads, and its file that is half written. When it
# wakes, the same process goes on with the next frame.
set -eu
seconds=${SECONDS_OF_FILM:-60} rate=10
: > progress.txt
ffmpeg -nostdin -v error -progress progress.txt -re -f lavfi -i "testsrc2=size=160x120:rate=$rate:duration=$seconds" \
    -c:v libx264 -threads 2 film.mkv &
encoder=$!

frames() {
    sed -n 's/^frame=//p' progress.txt | tail -n 1
}
look() {
    echo "$(cat /proc/$encoder/comm) $encoder: $(frames) of $((seconds * rate)) frames"
}
until [ "$(frames)" ] && [ "$(frames)" -ge $((seconds * rate / 4)) ]; do sleep 0.1; done
if ! look | perdure-guest wait approval "Go on?" --show - --timeout 3d; then
    kill $encoder
    exit 1
fi
perdure-guest emit encoded "$(look)"
wait $encoder
ffmpeg -nostdin -v error -xerror -i film.mkv -f null - # all of it can be decoded
ffprobe -v error -count_frames -show_entries stream=nb_read_frames -of csv=p=0 film.mkv
