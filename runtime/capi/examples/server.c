/* A server with a pool of threads: a client sends one line of text and gets 16-bit samples, 24000 a second, while they are made.
 *
 *     server [PORT [THREADS]]          # 0: any free port, which is printed; stops at SIGINT or SIGTERM
 *     echo "Hello there." | nc -q -1 127.0.0.1 PORT | aplay -f S16_LE -r 24000
 *
 * All threads share one engine, so what several clients hear at a time is decoded side by side.
 */
#define _POSIX_C_SOURCE 200809L
#include <arpa/inet.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <tortoise_rt.h>

enum { MOST_THREADS = 64, LONGEST_LINE = 4096, AT_ONCE = 1024 };

static trt_engine *engine;
static int listener;

/* Send a piece; -> 0 where the client has gone, which ends the stream. */
static int send_piece(const trt_chunk *chunk, void *user)
{
    const int client = *(const int *)user;
    int16_t pcm[AT_ONCE];
    for (size_t i = 0; i < chunk->count; i += AT_ONCE) {
        const size_t count = chunk->count - i < AT_ONCE ? chunk->count - i : AT_ONCE;
        const char *bytes = (const char *)pcm;
        size_t left = count * sizeof *pcm;
        for (size_t k = 0; k < count; k++)
            pcm[k] = (int16_t)lrintf(32767 * fmaxf(-1, fminf(1, chunk->samples[i + k])));
        while (left > 0) {
            const ssize_t sent = send(client, bytes, left, MSG_NOSIGNAL);
            if (sent <= 0)
                return 0;
            bytes += sent;
            left -= (size_t)sent;
        }
    }
    return 1;
}

static void serve(int client)
{
    char line[LONGEST_LINE];
    size_t length = 0;
    trt_request request;
    const struct timeval patience = {.tv_sec = 10};
    ssize_t got;
    setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    while (length < sizeof line - 1 && (got = recv(client, line + length, sizeof line - 1 - length, 0)) > 0) {
        length += (size_t)got;
        if (memchr(line, '\n', length) != NULL)
            break;
    }
    line[length] = 0;
    trt_request_init(&request, sizeof request);
    request.text = line;
    request.seed = 7;
    if (trt_speak(engine, &request, send_piece, &client) != TRT_OK)
        fprintf(stderr, "%s\n", trt_last_error());
}

static void *work(void *unused)
{
    int client;
    while ((client = accept(listener, NULL, NULL)) >= 0) {
        serve(client);
        close(client);
    }
    return unused;
}

int main(int count, char **arguments)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t size = sizeof address;
    const int threads = count > 2 ? atoi(arguments[2]) : 4;
    pthread_t pool[MOST_THREADS];
    sigset_t stops;
    int number;

    sigemptyset(&stops);
    sigaddset(&stops, SIGINT);
    sigaddset(&stops, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &stops, NULL); /* also in the library's threads: main waits for them */
    address.sin_port = htons((uint16_t)(count > 1 ? atoi(arguments[1]) : 0));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    if (threads < 1 || threads > MOST_THREADS || bind(listener, (struct sockaddr *)&address, size) != 0 ||
        listen(listener, 16) != 0 || getsockname(listener, (struct sockaddr *)&address, &size) != 0) {
        fprintf(stderr, "usage: server [PORT [THREADS]], with a port that is free and 1 to %d threads\n", MOST_THREADS);
        return 2;
    }
    if (trt_engine_open(NULL, &engine) != TRT_OK) {
        fprintf(stderr, "%s\n", trt_last_error());
        return 1;
    }
    for (int i = 0; i < threads; i++)
        if (pthread_create(&pool[i], NULL, work, NULL) != 0)
            return 1;
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    sigwait(&stops, &number);
    shutdown(listener, SHUT_RDWR); /* so that accept() ends */
    trt_engine_close(engine);      /* so that trt_speak() does */
    for (int i = 0; i < threads; i++)
        pthread_join(pool[i], NULL);
    return 0;
}
