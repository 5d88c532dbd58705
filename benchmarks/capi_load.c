/* Many requests on one engine, from several threads: what came out, how long it took, how much memory it holds.
 *
 *     capi_load [NAME=VALUE...]      # engine, backend, tokenizer, strict, rows; text, codes; threads, requests, aside, cycles,
 *                                 # stream, leak
 *
 * Thread t says request r with the seed 1000 t + r; with aside=0 the threads come one after another. Prints one line of JSON; "hashes" are of the samples, by thread, then request.
 */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include <tortoise_rt.h>

enum { MOST_THREADS = 64 };

static trt_engine *engine;
static trt_settings settings;
static const char *text = "Hello there, how are you today?";
static long threads = 1, requests = 1, cycles = 1, aside = 1, stream, leak;
static long early; /* resident memory after a fifth of the requests, or of the cycles */
static uint64_t *hashes;
static double *spent; /* seconds of each request of the first thread */

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static long resident_kib(void)
{
    long pages = 0, all;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file != NULL && fscanf(file, "%ld %ld", &all, &pages) != 2)
        pages = 0;
    if (file != NULL)
        fclose(file);
    return pages * (sysconf(_SC_PAGESIZE) / 1024);
}

static void need(int status)
{
    if (status == TRT_OK)
        return;
    fprintf(stderr, "%s: %s\n", trt_status_name(status), trt_last_error());
    _exit(1);
}

static uint64_t hash(uint64_t seen, const float *samples, size_t count)
{
    const unsigned char *bytes = (const unsigned char *)samples;
    for (size_t i = 0; i < count * sizeof *samples; i++)
        seen = (seen ^ bytes[i]) * 1099511628211u; /* FNV-1a */
    return seen;
}

static int compare(const void *one, const void *other)
{
    const double a = *(const double *)one, b = *(const double *)other;
    return (a > b) - (a < b);
}

static int add_piece(const trt_chunk *chunk, void *user)
{
    *(uint64_t *)user = hash(*(uint64_t *)user, chunk->samples, chunk->count);
    return 1;
}

static void say(long thread, long number)
{
    trt_request request;
    trt_audio audio;
    uint64_t *result = &hashes[thread * requests + number];
    need(trt_request_init(&request, sizeof request));
    request.text = text;
    request.settings = &settings;
    request.seed = 1000 * thread + number;
    *result = 14695981039346656037u;
    if (stream) {
        request.chunk = 8;
        need(trt_speak(engine, &request, add_piece, result));
    } else {
        need(trt_synthesize(engine, &request, &audio));
        *result = hash(*result, audio.samples, audio.count);
        if (!leak) /* to see that a leak would be seen */
            trt_free(audio.samples);
    }
}

static void *work(void *thread)
{
    const long own = *(long *)thread;
    for (long number = 0; number < requests; number++) {
        const double began = now();
        say(own, number);
        if (own == 0)
            spent[number] = now() - began;
        if (cycles == 1 && own == 0 && number == requests / 5)
            early = resident_kib();
    }
    return NULL;
}

int main(int count, char **arguments)
{
    trt_engine_options options;
    trt_engine_info info = {.struct_size = sizeof info};
    pthread_t pool[MOST_THREADS];
    long numbers[MOST_THREADS];
    double start, opened, first, seconds;

    need(trt_engine_options_init(&options, sizeof options));
    need(trt_settings_init(&settings, sizeof settings));
    settings.decoder = "hifigan";
    settings.num_autoregressive_samples = 1;
    for (int i = 1; i < count; i++) {
        char *name = arguments[i], *value = strchr(name, '=');
        if (value == NULL)
            return 2;
        *value++ = 0;
        if (!strcmp(name, "engine")) options.engine = value;
        else if (!strcmp(name, "backend")) options.backend = value;
        else if (!strcmp(name, "tokenizer")) options.tokenizer = value;
        else if (!strcmp(name, "strict")) options.strict = atol(value);
        else if (!strcmp(name, "rows")) options.rows = atol(value);
        else if (!strcmp(name, "text")) text = value;
        else if (!strcmp(name, "codes")) settings.max_mel_tokens = atol(value);
        else if (!strcmp(name, "threads")) threads = atol(value);
        else if (!strcmp(name, "requests")) requests = atol(value);
        else if (!strcmp(name, "cycles")) cycles = atol(value);
        else if (!strcmp(name, "aside")) aside = atol(value);
        else if (!strcmp(name, "stream")) stream = atol(value);
        else if (!strcmp(name, "leak")) leak = atol(value);
        else return 2;
    }
    if (threads < 1 || threads > MOST_THREADS || requests < 1 || cycles < 1)
        return 2;
    hashes = calloc((size_t)(threads * requests), sizeof *hashes);
    spent = calloc((size_t)requests, sizeof *spent);
    start = now();
    need(trt_engine_open(&options, &engine));
    opened = now() - start;
    say(0, 0);
    first = now() - start;
    for (long cycle = 1; cycle < cycles; cycle++) { /* open, say one thing, close */
        need(trt_engine_close(engine));
        need(trt_engine_open(&options, &engine));
        say(0, 0);
        if (cycle == cycles / 5)
            early = resident_kib();
    }
    start = now();
    for (long i = 0; i < threads; i++) {
        numbers[i] = i;
        if (!aside)
            work(&numbers[i]);
        else if (pthread_create(&pool[i], NULL, work, &numbers[i]) != 0)
            return 1;
    }
    for (long i = 0; aside && i < threads; i++)
        pthread_join(pool[i], NULL);
    seconds = now() - start;
    need(trt_engine_get_info(engine, &info));
    qsort(spent, (size_t)requests, sizeof *spent, compare);
    printf("{\"open_s\": %.4f, \"first_s\": %.4f, \"seconds\": %.4f, \"median_s\": %.6f, "
           "\"early_kib\": %ld, \"late_kib\": %ld, \"steps\": %lld, "
           "\"decoded\": %lld, \"hashes\": [", opened, first, seconds, spent[requests / 2], early, resident_kib(), (long long)info.steps,
           (long long)info.decoded);
    for (long i = 0; i < threads * requests; i++)
        printf("%s\"%016llx\"", i ? ", " : "", (unsigned long long)hashes[i]);
    printf("]}\n");
    free(hashes);
    free(spent);
    need(trt_engine_close(engine));
    return 0;
}
