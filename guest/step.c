// A step of a shell: its intent is recorded before the command runs, its stdout and exit status after it. Asked again (by
// a script that runs again, or a machine that was restored), both are told from the log, and nothing runs.
#define _GNU_SOURCE
#include "step.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "ask.h"
#include "json.h"
#include "say.h"

enum { OUTPUT_MAX = 1 << 20, READ = 64 << 10, NOT_FOUND = 127, NOT_EXECUTABLE = 126, BY_SIGNAL = 128 };

static volatile pid_t child;  // 0: it has ended, and its number may be another's

// A step that has begun is to end, and its end to be recorded: signals are its command's. A terminal sends SIGINT to the
// command, too.
static void pass_on(int number) {
    if (child && number != SIGINT)
        kill(child, number);
}

// Those that came before there was a command to take them are its, too.
static void pass_signals(void) {
    sigset_t pending;
    if (!sigpending(&pending) && sigismember(&pending, SIGINT) == 1)
        kill(child, SIGINT);
    door_signals_to(pass_on);
}

static _Noreturn void run_command(char **argv, int out, const char *identity) {
    door_signals_to(SIG_DFL);
    dup2(out, STDOUT_FILENO);
    close(out);
    setenv("PERDURE_IDEMPOTENCY_KEY", identity, 1);
    execvp(argv[0], argv);
    int status = errno == ENOENT ? NOT_FOUND : NOT_EXECUTABLE;
    fprintf(stderr, "perdure-guest: %s: %s\n", argv[0], strerror(errno));
    _exit(status);
}

// Its stdout, kept up to the limit; where it is `live` all of it is passed on as it comes. The exit status.
static int listen_to(int from, bool live, struct bytes *output, bool *too_much) {
    uint8_t piece[READ];
    siginfo_t ended;
    int status = 0;
    for (ssize_t count; (count = read(from, piece, sizeof piece)) > 0 || (count < 0 && errno == EINTR);) {
        if (count < 0)
            continue;
        if (live)
            say(piece, (size_t)count);
        *too_much = *too_much || bytes_length(output) + (size_t)count > OUTPUT_MAX;
        if (!*too_much)
            bytes_append(output, piece, (size_t)count);
    }
    while (waitid(P_PID, (id_t)child, &ended, WEXITED | WNOWAIT) < 0 && errno == EINTR) {
    }
    pid_t pid = child;
    child = 0;
    waitpid(pid, &status, 0);
    return WIFEXITED(status) ? WEXITSTATUS(status) : BY_SIGNAL + WTERMSIG(status);
}

static int run(char **argv, const char *identity, bool live, struct bytes *output, bool *too_much) {
    int ends[2];
    signal(SIGCHLD, SIG_DFL);  // where whoever started this ignores it, nobody would know how the command ended
    if (pipe(ends))
        die(FAILED, NULL, "pipe: %s", strerror(errno));
    child = fork();
    if (child < 0)
        die(FAILED, NULL, "fork: %s", strerror(errno));
    if (!child) {
        close(ends[0]);
        run_command(argv, ends[1], identity);
    }
    close(ends[1]);
    pass_signals();
    int status = listen_to(ends[0], live, output, too_much);
    close(ends[0]);
    return status;
}

static void put_base64(struct bytes *out, const struct bytes *data) {
    static const char digits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    const uint8_t *at = bytes_head(data);
    put(out, "\"");
    for (size_t left = bytes_length(data); left; at += left < 3 ? left : 3, left -= left < 3 ? left : 3) {
        uint32_t group = (uint32_t)at[0] << 16 | (left > 1 ? (uint32_t)at[1] << 8 : 0) | (left > 2 ? at[2] : 0);
        char four[] = {digits[group >> 18], digits[group >> 12 & 63], left > 1 ? digits[group >> 6 & 63] : '=',
                       left > 2 ? digits[group & 63] : '='};
        bytes_append(out, four, sizeof four);
    }
    put(out, "\"");
}

static uint32_t digit64(uint8_t c) {
    return c >= 'a' ? c - 'a' + 26u : c >= 'A' ? c - 'A' + 0u : c >= '0' ? c - '0' + 52u : c == '+' ? 62u : 63u;
}

static void put_decoded64(struct bytes *data, struct slice value) {
    struct bytes text = {0};
    json_decode(&text, value);
    const uint8_t *at = bytes_head(&text);
    for (size_t left = bytes_length(&text); left >= 4; at += 4, left -= 4) {
        uint32_t group = digit64(at[0]) << 18 | digit64(at[1]) << 12 | digit64(at[2]) << 6 | digit64(at[3]);
        uint8_t three[] = {(uint8_t)(group >> 16), (uint8_t)(group >> 8), (uint8_t)group};
        bytes_append(data, three, at[2] == '=' ? 1 : at[3] == '=' ? 2 : 3);
    }
    bytes_free(&text);
}

// What is recorded, as if the command had run just now.
static int replay(struct slice state, struct bytes *said) {
    struct slice result = json_member(state, "result"), output = json_member(result, "output");
    struct slice binary = json_member(result, "output_base64"), status = json_member(result, "exit_status");
    if (json_member(state, "error").data)
        refused(200, state);
    if (json_is_text(output))
        json_decode(said, output);
    else if (json_is_text(binary))
        put_decoded64(said, binary);
    return status.data ? atoi((const char *)status.data) : 0;
}

static void put_end(struct bytes *end, int status, const struct bytes *output, bool too_much) {
    char text[64];
    if (too_much) {
        put(end, "{\"error\": {\"type\": \"TooLarge\", \"message\": \"the command wrote more than 1 MiB to stdout: let it write "
                 "into a file\"}}");
        return;
    }
    snprintf(text, sizeof text, "{\"result\": {\"exit_status\": %d, ", status);
    put(end, text);
    if (utf8_check(bytes_head(output), bytes_length(output))) {
        put(end, "\"output\": ");
        json_put(end, bytes_head(output), bytes_length(output));
    } else {
        put(end, "\"output_base64\": ");
        put_base64(end, output);
    }
    put(end, "}}");
}

static struct slice checked(unsigned status, const struct bytes *answer) {
    struct slice state = {bytes_head(answer), bytes_length(answer)};
    if (status >= 400 || !json_check(state))
        refused(status, state);
    return state;
}

// A signal came while its beginning was asked for. If it is recorded, only we know that nothing came of it: it ended as its
// command would have by that signal. The host refuses this where it had not begun, or is in doubt.
static _Noreturn void give_up(const struct key *key) {
    struct bytes end = {0}, nothing = {0}, answer = {0};
    int number = door_heed_no_more();
    put_end(&end, BY_SIGNAL + number, &nothing, false);
    door_call("step/end", key, &end, &answer);
    end_by_signal(number);
}

// One attempt; what of its stdout was not passed on is in `held`.
static int attempt(const struct step *step, const struct key *first, const struct key *key, bool is_last, struct bytes *held) {
    struct bytes body = {0}, answer = {0}, output = {0}, end = {0}, identity = {0};
    char of[sizeof first->lane + 32];
    bool too_much = false;
    put(&body, "{\"name\": ");
    put_text_value(&body, step->name);
    put_member(&body, "on_doubt", step->on_doubt);
    snprintf(of, sizeof of, "%s/%llu", first->lane, (unsigned long long)first->ordinal);
    put_member(&body, "of", key == first ? NULL : of);
    put(&body, "}");
    door_heed();  // until its command has them
    unsigned status = door_call("step", key, &body, &answer);
    if (!status)
        give_up(key);
    struct slice state = checked(status, &answer);
    if (!slice_is(json_member(state, "status"), "\"run\"")) {
        door_signals_to(SIG_DFL);
        return replay(state, held);
    }
    struct slice known = json_member(state, "idempotency_key");
    if (json_is_text(known))
        json_decode(&identity, known);
    put_u8(&identity, 0);
    int ended = run(step->command, (const char *)bytes_head(&identity), is_last, &output, &too_much);
    put_end(&end, ended, &output, too_much);
    status = door_call("step/end", key, &end, &answer);
    if (status == 413 || status == 400) {  // it cannot be kept as it is; that it has ended can
        bytes_free(&end);
        put_end(&end, ended, &output, too_much = true);
        status = door_call("step/end", key, &end, &answer);
    }
    state = checked(status, &answer);
    if (json_member(state, "error").data)
        refused(status, state);
    door_signals_to(SIG_DFL);
    if (!is_last)
        *held = output;
    return ended;
}

// Whoever ends the command by a signal wants no other attempt.
static bool is_to_be_tried_again(int status) {
    return status && status != BY_SIGNAL + SIGTERM && status != BY_SIGNAL + SIGINT && status != BY_SIGNAL + SIGHUP;
}

static void pause_for(const struct key *lane, double seconds) {
    struct key key = *lane;
    struct bytes body = {0}, answer = {0};
    char text[64];
    snprintf(text, sizeof text, "{\"kind\": \"time\", \"seconds\": %.3f}", seconds);
    put(&body, text);
    door_take(&key);
    ask_wait("wait", &key, &body, &answer);
    bytes_free(&body);
    bytes_free(&answer);
}

int step_run(const struct step *step, const struct key *first) {
    struct key again = *first;
    double pause_s = step->backoff_s;
    for (unsigned left = step->retries;; left--) {
        struct bytes held = {0};
        int status = attempt(step, first, left == step->retries ? first : &again, !left, &held);
        if (!left || !is_to_be_tried_again(status)) {
            say(bytes_head(&held), bytes_length(&held));
            return status;
        }
        bytes_free(&held);
        pause_for(first, pause_s < step->backoff_max_s ? pause_s : step->backoff_max_s);
        pause_s *= 2;
        door_take(&again);
    }
}
