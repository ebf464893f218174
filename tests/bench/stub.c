// A fast stand-in for Azure: answers every POST from one epoll thread with ready-made bytes.
//
//   stub PORT [-n deltas]      (PORT 0: a free one; the port is printed on the first line)
//
// "stream": true in the body → an SSE stream: response.created, n response.output_text.delta,
// response.completed, in one burst, or one delta every stub_iv_N microseconds when the body says
// so. Anything else → a JSON response of 2.6 KB. Every response has an id of its own, because a
// proxy may index them. Deltas of paced streams carry their monotonic send time in nanoseconds.
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

#define MARK "00000000000000000000000000000000feedfacefeedface"  // overwritten by each id
#define MOST_PACED 20000

typedef struct { char *bytes; size_t length, room, sent; } buffer;
typedef struct conn {
    int fd, dead, delta, pause;  // delta: the next one of a paced stream, 0 when there is none
    int64_t due;
    uint64_t id;
    buffer in, out;
} conn;

static const char RESPONSE[] =
    "{\"id\":\"resp_" MARK "\",\"object\":\"response\",\"created_at\":1741476542,"
    "\"status\":\"%s\",\"background\":false,\"error\":null,\"incomplete_details\":null,"
    "\"instructions\":null,\"max_output_tokens\":null,\"model\":\"gpt-4.1-2025-04-14\","
    "\"output\":[%s],\"parallel_tool_calls\":true,\"previous_response_id\":null,"
    "\"reasoning\":{\"effort\":null,\"summary\":null},\"store\":true,\"temperature\":1.0,"
    "\"text\":{\"format\":{\"type\":\"text\"}},\"tool_choice\":\"auto\",\"tools\":[],"
    "\"top_p\":1.0,\"truncation\":\"disabled\",\"usage\":%s,\"user\":null,\"metadata\":{}}";
static const char MESSAGE[] =
    "{\"type\":\"message\",\"id\":\"msg_67ccd2bf17f0819081ff3bb2cf6508e60bb6a6b452d3795b\","
    "\"status\":\"completed\",\"role\":\"assistant\",\"content\":[{\"type\":\"output_text\","
    "\"text\":\"%s\",\"annotations\":[]}]}";
static const char USAGE[] =
    "{\"input_tokens\":328,\"input_tokens_details\":{\"cached_tokens\":0},\"output_tokens\":352,"
    "\"output_tokens_details\":{\"reasoning_tokens\":0},\"total_tokens\":680}";
static const char COMMON[] =
    "x-request-id: 6b1b5d0e-0b7a-4c1c-9f8e-2b6a4d9a0c11\r\n"
    "apim-request-id: 0a7e6f44-1111-2222-3333-444455556666\r\n"
    "x-ratelimit-remaining-requests: 99\r\n";

static int poller, deltas = 200;
static uint64_t answered;
static buffer json, burst, stream_head;
static conn *paced[MOST_PACED];
static int paced_count;

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

static void put(buffer *b, const char *bytes, size_t length) {
    if (b->length + length > b->room) {
        b->room = (b->length + length) * 2;
        b->bytes = realloc(b->bytes, b->room);
    }
    memcpy(b->bytes + b->length, bytes, length);
    b->length += length;
}

static void put_with_id(buffer *out, const buffer *ready, uint64_t id) {
    size_t start = out->length;
    put(out, ready->bytes, ready->length);
    char number[17], *end = out->bytes + out->length, *at = out->bytes + start;
    snprintf(number, sizeof number, "%016llx", (unsigned long long)id);
    while ((at = memmem(at, end - at, MARK, sizeof MARK - 1)))
        memcpy(at + sizeof MARK - 17, number, 16), at += sizeof MARK - 1;
}

static void put_event(buffer *b, int number) {  // 0: created; 1 to n: delta; n + 1: completed
    static char data[16384], response[12000], message[9000], text[1001];
    char head[40];
    int length;
    memset(text, 'x', sizeof text - 1);
    if (number == 0 || number > deltas) {
        snprintf(message, sizeof message, MESSAGE, text);
        snprintf(response, sizeof response, RESPONSE, number ? "completed" : "in_progress",
                 number ? message : "", number ? USAGE : "null");
        const char *type = number ? "response.completed" : "response.created";
        length = snprintf(data, sizeof data,
                          "event: %s\ndata: {\"type\":\"%s\",\"sequence_number\":%d,"
                          "\"response\":%s}\n\n", type, type, number, response);
    } else {
        length = snprintf(
            data, sizeof data,
            "event: response.output_text.delta\ndata: {\"type\":\"response.output_text.delta\","
            "\"item_id\":\"msg_67c9fdcf37fc8190ba82116e33fb28c501b8b0ad\",\"output_index\":0,"
            "\"content_index\":0,\"delta\":\"t%lld\",\"logprobs\":[],"
            "\"obfuscation\":\"aBcDeFgHiJkLmN\",\"sequence_number\":%d}\n\n",
            (long long)now_ns(), number);
    }
    put(b, head, snprintf(head, sizeof head, "%x\r\n", length));
    put(b, data, length);
    put(b, "\r\n", 2);
}

static void prepare(void) {
    static char text[1751], body[6000], message[3000], head[600];
    for (int i = 0; i < 1750; i++) text[i] = "the quick brown fox jumps over the lazy dog "[i % 44];
    snprintf(message, sizeof message, MESSAGE, text);
    int length = snprintf(body, sizeof body, RESPONSE, "completed", message, USAGE);
    put(&json, head, snprintf(head, sizeof head,
                              "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n%s"
                              "Content-Length: %d\r\n\r\n", COMMON, length));
    put(&json, body, length);
    put(&stream_head, head,
        snprintf(head, sizeof head,
                 "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
                 "cache-control: no-cache\r\n%sTransfer-Encoding: chunked\r\n\r\n", COMMON));
    put(&burst, stream_head.bytes, stream_head.length);
    for (int i = 0; i <= deltas + 1; i++) put_event(&burst, i);
    put(&burst, "0\r\n\r\n", 5);
}

static void flush(conn *c) {
    buffer *b = &c->out;
    while (b->sent < b->length) {
        ssize_t n = send(c->fd, b->bytes + b->sent, b->length - b->sent, MSG_NOSIGNAL);
        if (n > 0) {
            b->sent += n;
        } else if (n < 0 && errno == EAGAIN) {
            struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.ptr = c};
            epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
            return;
        } else {
            c->dead = 1;
            return;
        }
    }
    b->length = b->sent = 0;
}

static void advance(conn *c) {  // the next event of a paced stream
    buffer one = {0};
    put_event(&one, c->delta);
    put_with_id(&c->out, &one, c->id);
    free(one.bytes);
    if (++c->delta > deltas + 1) {
        put(&c->out, "0\r\n\r\n", 5);
        c->delta = 0;
    }
    c->due += c->pause * 1000LL;
    flush(c);
}

static int number_after(const char *text, size_t length, const char *name) {
    char *at = memmem(text, length, name, strlen(name));
    return at ? atoi(at + strlen(name)) : 0;
}

static size_t whole_request(conn *c, size_t *head_length) {  // 0: not all here yet
    char *end = memmem(c->in.bytes, c->in.length, "\r\n\r\n", 4);
    if (!end) return 0;
    size_t length = 0;
    *head_length = end - c->in.bytes + 4;
    for (char *line = c->in.bytes; line < end; line = (char *)memmem(line, end + 2 - line, "\r\n", 2) + 2) {
        if (!strncasecmp(line, "content-length:", 15)) length = strtoul(line + 15, 0, 10);
        if (!strncasecmp(line, "transfer-encoding:", 18)) {
            char *tail = memmem(end + 2, c->in.bytes + c->in.length - end - 2, "\r\n0\r\n\r\n", 7);
            return tail ? (size_t)(tail + 7 - c->in.bytes) : 0;
        }
    }
    return c->in.length >= *head_length + length ? *head_length + length : 0;
}

static void answer(conn *c) {
    size_t total, head;
    while (!c->dead && !c->delta && c->in.length && (total = whole_request(c, &head))) {
        char *body = c->in.bytes + head, *end = c->in.bytes + total;
        char *stream = memmem(body, end - body, "\"stream\"", 8);
        int streamed = 0;
        if (stream) {
            for (stream += 8; stream < end && (*stream == ':' || *stream == ' ');) stream++;
            streamed = stream < end && *stream == 't';
        }
        c->pause = number_after(body, end - body, "stub_iv_");
        c->id = ++answered;
        memmove(c->in.bytes, end, c->in.length -= total);
        if (streamed && c->pause && paced_count < MOST_PACED) {
            put(&c->out, stream_head.bytes, stream_head.length);
            c->delta = 0, c->due = now_ns();
            buffer created = {0};
            put_event(&created, 0);
            put_with_id(&c->out, &created, c->id);
            free(created.bytes);
            c->delta = 1, c->due += c->pause * 1000LL;
            paced[paced_count++] = c;
        } else {
            put_with_id(&c->out, streamed ? &burst : &json, c->id);
        }
        flush(c);
    }
}

static void end_conn(conn *c) {
    for (int i = 0; i < paced_count; i++)
        if (paced[i] == c) paced[i--] = paced[--paced_count];
    close(c->fd);
    free(c->in.bytes);
    free(c->out.bytes);
    free(c);
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, 0, 0, SOCK_NONBLOCK)) >= 0) {
        conn *c = calloc(1, sizeof *c);
        c->fd = fd;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &e);
    }
}

static void serve(conn *c, uint32_t events) {
    if (events & EPOLLOUT) {
        struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
        epoll_ctl(poller, EPOLL_CTL_MOD, c->fd, &e);
        flush(c);
    }
    if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
        if (c->in.room - c->in.length < 16384) {
            c->in.room = c->in.room * 2 + 32768;
            c->in.bytes = realloc(c->in.bytes, c->in.room);
        }
        ssize_t n = recv(c->fd, c->in.bytes + c->in.length, c->in.room - c->in.length, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN)) c->dead = 1;
        if (n > 0) c->in.length += n, answer(c);
    }
    if (c->dead) end_conn(c);
}

static int pace(void) {  // milliseconds until the next event is due
    int64_t now = now_ns(), next = now + 1000000000LL;
    for (int i = 0; i < paced_count; i++) {
        conn *c = paced[i];
        while (c->delta && c->due <= now && !c->dead) advance(c);
        if (c->dead || !c->delta) {
            paced[i--] = paced[--paced_count];
            if (!c->dead) answer(c);
        } else if (c->due < next) {
            next = c->due;
        }
    }
    return paced_count ? (int)((next - now + 999999) / 1000000) : -1;
}

int main(int count, char **words) {
    if (count < 2) return fprintf(stderr, "usage: stub PORT [-n deltas]\n"), 2;
    if (count > 3) deltas = atoi(words[3]);
    signal(SIGPIPE, SIG_IGN);
    struct rlimit many = {65536, 65536};
    setrlimit(RLIMIT_NOFILE, &many);
    prepare();
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(atoi(words[1])),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    if (bind(listener, (void *)&address, length) || listen(listener, 4096))
        return perror("stub"), 1;
    getsockname(listener, (void *)&address, &length);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    poller = epoll_create1(0);
    struct epoll_event listening = {.events = EPOLLIN}, ready[512];
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &listening);
    for (int wait = -1;; wait = pace()) {
        int found = epoll_wait(poller, ready, 512, wait);
        for (int i = 0; i < found; i++) {
            if (ready[i].data.ptr) serve(ready[i].data.ptr, ready[i].events);
            else accept_all(listener);
        }
    }
}
