/* Threads that all begin at once: each opens an engine of its own, speaks, and closes it, from within a callback.
 * Ends with 1 where something goes wrong.  race TOKENIZER */
#include <pthread.h>
#include <stdio.h>

#include <tortoise_rt.h>

enum { THREADS = 8 };
static const char *tokenizer;

static int stop_all(const trt_chunk *chunk, void *engine)
{
    float before = 0, after = 0;
    int status;
    for (size_t i = 0; i < chunk->count; i++)
        before += chunk->samples[i];
    status = trt_engine_close(engine); /* from the engine's own callback, which keeps its piece */
    for (size_t i = 0; i < chunk->count; i++)
        after += chunk->samples[i];
    return status == TRT_OK && before == after;
}

static int speak(void)
{
    trt_engine_options options;
    trt_engine *engine;
    trt_request request;
    trt_settings settings;
    trt_audio audio;
    int status;
    trt_engine_options_init(&options, sizeof options);
    options.backend = "fake";
    options.tokenizer = tokenizer;
    if (trt_engine_open(&options, &engine) != TRT_OK)
        return 1;
    trt_settings_init(&settings, sizeof settings);
    settings.decoder = "hifigan";
    settings.num_autoregressive_samples = 1;
    settings.max_mel_tokens = 60;
    trt_request_init(&request, sizeof request);
    request.text = "Hello there. And a second sentence.";
    request.settings = &settings;
    request.seed = 1;
    if (trt_synthesize(engine, &request, &audio) != TRT_OK)
        return 1;
    trt_free(audio.samples);
    request.chunk = 4;
    status = trt_speak(engine, &request, stop_all, engine);
    if (status != TRT_ERROR_CANCELLED)
        return 1;
    return trt_engine_close(engine) != TRT_ERROR_CLOSED;
}

static void *work(void *failed)
{
    if (speak() != 0) {
        fprintf(stderr, "%s\n", trt_last_error());
        *(int *)failed = 1;
    }
    return NULL;
}

int main(int count, char **arguments)
{
    pthread_t threads[THREADS];
    int failed[THREADS] = {0}, all = 0;
    tokenizer = count > 1 ? arguments[1] : NULL;
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, work, &failed[i]) != 0)
            return 1;
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        all |= failed[i];
    }
    return all;
}
