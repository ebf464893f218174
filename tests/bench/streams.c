// Reads many SSE streams at once and counts what arrives; bounded by a time in seconds.
//
//   streams PORT PATH KEY CONNECTIONS SECONDS [PAUSE_US]
//
// Prints one JSON line: whole streams, events, errors, microseconds to the first event, and, for
// paced streams, the delay of each delta from the stub's send time to its arrival here.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTING, HEAD, SIZE, DATA, DATA_END, TRAILER };
typedef struct {
    int fd, state, head_length, line_length, seen_first, completed;
    size_t chunk;
    int64_t asked;
    char head[8192], line[32768];
} conn;
typedef struct { double *values; size_t count, room; } series;

static struct sockaddr_in target;
static char request[8192];
static int request_length, poller;
static int64_t stop_at;
static uint64_t streams, events, errors;
static series first_event, delay;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void note(series *s, double value) {
    if (s->count == s->room) s->values = realloc(s->values, (s->room = s->room * 2 + 4096) * 8);
    s->values[s->count++] = value;
}

static int ascending(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double quantile(series *s, double q) {
    if (!s->count) return -1;
    qsort(s->values, s->count, sizeof *s->values, ascending);
    return s->values[(size_t)(q * (s->count - 1))];
}

static void connect_again(conn *c) {
    int one = 1;
    if (c->fd) close(c->fd);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    connect(c->fd, (void *)&target, sizeof target);
    c->state = CONNECTING;
    struct epoll_event e = {.events = EPOLLOUT, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_ADD, c->fd, &e);
}

static void ask(conn *c) {
    c->state = HEAD;
    c->head_length = c->line_length = c->seen_first = c->completed = 0;
    c->asked = now_ns();
    if (send(c->fd, request, request_length, MSG_NOSIGNAL) != request_length) errors++;
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
}

static void take_line(conn *c, int64_t now) {
    c->line[c->line_length] = 0;
    if (!strncmp(c->line, "data:", 5)) {
        events++;
        if (!c->seen_first) c->seen_first = 1, note(&first_event, (now - c->asked) / 1e3);
        char *sent = strstr(c->line, "\"delta\":\"t");
        if (sent && atoll(sent + 10) > 0) note(&delay, (now - atoll(sent + 10)) / 1e3);
        if (strstr(c->line, "\"response.completed\"")) c->completed = 1;
    }
    c->line_length = 0;
}

static void take_data(conn *c, const char *bytes, size_t length, int64_t now) {
    for (size_t i = 0; i < length; i++) {
        if (bytes[i] == '\n') take_line(c, now);
        else if (c->line_length < (int)sizeof c->line - 1) c->line[c->line_length++] = bytes[i];
    }
}

static int take(conn *c, const char *bytes, ssize_t length) {  // 1: the answer is complete; -1: bad
    int64_t now = now_ns();
    for (ssize_t i = 0; i < length;) {
        switch (c->state) {
        case HEAD:
            if (c->head_length == sizeof c->head - 1) return -1;
            c->head[c->head_length++] = bytes[i++];
            if (c->head_length < 4 || memcmp(c->head + c->head_length - 4, "\r\n\r\n", 4)) break;
            c->head[c->head_length] = 0;
            if (!strstr(c->head, " 200") || !strcasestr(c->head, "chunked")) return -1;
            c->state = SIZE, c->chunk = 0;
            break;
        case SIZE: {
            char ch = bytes[i++];
            if (ch == '\n') c->state = c->chunk ? DATA : TRAILER;
            else if (ch != '\r')
                c->chunk = c->chunk * 16 + (ch <= '9' ? ch - '0' : (ch | 32) - 'a' + 10);
            break;
        }
        case DATA: {
            size_t part = (size_t)(length - i) < c->chunk ? (size_t)(length - i) : c->chunk;
            take_data(c, bytes + i, part, now);
            i += part, c->chunk -= part;
            if (!c->chunk) c->state = DATA_END;
            break;
        }
        case DATA_END:
            if (bytes[i++] == '\n') c->state = SIZE;
            break;
        case TRAILER:
            if (bytes[i++] == '\n') return c->completed ? 1 : -1;
            break;
        default: return -1;
        }
    }
    return 0;
}

static void serve(conn *c, uint32_t what) {
    static char bytes[262144];
    if (c->state == CONNECTING) {
        if (what & EPOLLOUT) ask(c);
        return;
    }
    ssize_t length = recv(c->fd, bytes, sizeof bytes, 0);
    if (length < 0 && errno == EAGAIN) return;
    int outcome = length > 0 ? take(c, bytes, length) : -1;
    if (outcome > 0) {
        streams++;
        if (now_ns() < stop_at) ask(c);
    } else if (outcome < 0) {
        errors++;
        usleep(1000);  // a refusing server must not be asked a million times
        connect_again(c);
    }
}

int main(int count, char **words) {
    if (count < 6) return fprintf(stderr, "usage: streams PORT PATH KEY CONNECTIONS SECONDS [PAUSE_US]\n"), 2;
    signal(SIGPIPE, SIG_IGN);
    struct rlimit many = {65536, 65536};
    setrlimit(RLIMIT_NOFILE, &many);
    int connections = atoi(words[4]), pause = count > 6 ? atoi(words[6]) : 0;
    double seconds = atof(words[5]);
    char text[1601], body[4096];
    for (int i = 0; i < 1600; i++) text[i] = "please summarise the following report for me "[i % 45];
    text[1600] = 0;
    int length = snprintf(body, sizeof body,
                          "{\"model\":\"gpt-4.1\",\"input\":[{\"role\":\"user\",\"content\":\"%s\"}],"
                          "\"stream\":true,\"metadata\":{\"stub\":\"stub_iv_%d\"}}", text, pause);
    request_length = snprintf(request, sizeof request,
                              "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%s\r\nContent-Type: application/json\r\n"
                              "Accept: text/event-stream\r\napi-key: %s\r\nContent-Length: %d\r\n\r\n%s",
                              words[2], words[1], words[3], length, body);
    target = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons(atoi(words[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    poller = epoll_create1(0);
    int64_t started = now_ns();
    stop_at = started + (int64_t)(seconds * 1e9);
    conn *all = calloc(connections, sizeof *all);
    for (int i = 0; i < connections; i++) connect_again(&all[i]);
    while (now_ns() < stop_at) {
        struct epoll_event ready[256];
        int found = epoll_wait(poller, ready, 256, 50);
        for (int i = 0; i < found; i++) serve(ready[i].data.ptr, ready[i].events);
    }
    double took = (now_ns() - started) / 1e9;
    printf("{\"seconds\":%.3f,\"streams\":%lu,\"events\":%lu,\"errors\":%lu,\"first_event_p50_us\":%.0f,"
           "\"first_event_p99_us\":%.0f,\"delay_p50_us\":%.0f,\"delay_p99_us\":%.0f}\n",
           took, streams, events, errors, quantile(&first_event, .5), quantile(&first_event, .99),
           quantile(&delay, .5), quantile(&delay, .99));
}
