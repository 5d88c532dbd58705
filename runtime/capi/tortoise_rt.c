/* libtortoise_rt.so: the functions of tortoise_rt.h. They check what must not be NULL and the sizes of structs, own the memory
 * that callers get, and pass on what they are asked to embedded.py. Everything here works without Python.
 */
#include <pthread.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "python.h"

/* --- errors --- */

static __thread char last_error[2048];

int fail(int status, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    vsnprintf(last_error, sizeof last_error, format, values);
    va_end(values);
    return status;
}

#define NEED(pointer)                                                                                                  \
    do {                                                                                                               \
        if ((pointer) == NULL)                                                                                         \
            return fail(TRT_ERROR_ARGUMENT, "%s: %s is NULL", __func__, #pointer);                                     \
    } while (0)

const char *trt_last_error(void)
{
    return last_error;
}

const char *trt_status_name(int status)
{
    switch (status) {
#define NAME(status) case status: return #status
        NAME(TRT_OK); NAME(TRT_PENDING); NAME(TRT_END); NAME(TRT_ERROR_ARGUMENT); NAME(TRT_ERROR_CLOSED);
        NAME(TRT_ERROR_TEXT); NAME(TRT_ERROR_VOICE); NAME(TRT_ERROR_AUDIO); NAME(TRT_ERROR_SETTINGS);
        NAME(TRT_ERROR_BUNDLE); NAME(TRT_ERROR_ENGINE); NAME(TRT_ERROR_BUSY); NAME(TRT_ERROR_CANCELLED);
        NAME(TRT_ERROR_TIMEOUT); NAME(TRT_ERROR_OUTPUT); NAME(TRT_ERROR_MEMORY); NAME(TRT_ERROR_ENVIRONMENT);
        NAME(TRT_ERROR_FORK); NAME(TRT_ERROR_INTERNAL);
#undef NAME
    }
    return "unknown status";
}

const char *trt_version(void)
{
    return TRT_VERSION;
}

int trt_api_version(void)
{
    return TRT_API_VERSION;
}

void trt_free(void *memory)
{
    free(memory);
}

/* --- structs: every field has 8 bytes or a multiple, so that a size is where a field ends and nothing is padding --- */

_Static_assert(sizeof(void *) == 8 && sizeof(size_t) == 8, "64 bits are needed");

static int check_size(const char *what, size_t size, size_t known)
{
    if (size >= sizeof(size_t) && size <= known && size % 8 == 0)
        return TRT_OK;
    return fail(TRT_ERROR_ARGUMENT,
                "struct_size of %s is %zu; this library (API %d) knows sizes of %zu to %zu, by 8: call %s_init() with "
                "sizeof, or use a library as new as the header",
                what, size, TRT_API_VERSION, sizeof(size_t), known, what);
}

/* Fill as much of a struct as its size says with defaults. */
#define INIT(type, pointer, size, ...)                                                                                 \
    do {                                                                                                               \
        const type defaults = {.struct_size = (size), __VA_ARGS__};                                                    \
        int status;                                                                                                    \
        NEED(pointer);                                                                                                 \
        if ((status = check_size(#type, (size), sizeof defaults)) == TRT_OK)                                           \
            memcpy((pointer), &defaults, (size));                                                                      \
        return status;                                                                                                 \
    } while (0)

int trt_engine_options_init(trt_engine_options *options, size_t struct_size)
{
    INIT(trt_engine_options, options, struct_size, .rows = -1, .queue = -1, .strict = -1);
}

int trt_settings_init(trt_settings *settings, size_t struct_size)
{
    INIT(trt_settings, settings, struct_size, .num_autoregressive_samples = -1, .max_mel_tokens = -1, .batch_rows = -1,
         .top_k = -1, .greedy = -1, .typical_sampling = -1, .diffusion_iterations = -1, .cond_free = -1,
         .enable_redaction = -1, .temperature = -1, .top_p = -1, .typical_mass = -1, .repetition_penalty = -1,
         .diffusion_temperature = -1, .eta = -1, .cond_free_k = -1, .cond_free_share = -1, .cvvp_amount = -1, .k = -1,
         .check = -1, .max_retries = -1);
}

int trt_request_init(trt_request *request, size_t struct_size)
{
    INIT(trt_request, request, struct_size, .seed = -1, .priority = -1, .timeout = -1, .split = -1, .pause = -1,
         .chunk = -1, .first_chunk = -1);
}

static int check_request(const trt_request *request)
{
    const size_t until_settings = offsetof(trt_request, settings) + sizeof request->settings;
    int status = check_size("trt_request", request->struct_size, sizeof *request);
    if (status == TRT_OK && request->struct_size >= until_settings && request->settings != NULL)
        status = check_size("trt_settings", request->settings->struct_size, sizeof *request->settings);
    return status;
}

/* --- the functions of the header: check what must not be NULL, and pass on --- */

#define NUMBER(pointer) ((unsigned long long)(uintptr_t)(pointer))

int trt_set_log(trt_log_fn fn, void *user, int level)
{
    int status = trt_start(NULL);
    return status == TRT_OK ? call("set_log", "(KKi)", NUMBER(fn), NUMBER(user), level) : status;
}

/* When the process ends: threads that still decode would find their libraries' data gone. */
static void close_all(void)
{
    call("close_all", "()");
}

static void at_exit(void)
{
    atexit(close_all); /* behind the libraries' own, so that it runs before them */
}

int trt_engine_open(const trt_engine_options *options, trt_engine **engine)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    int status = TRT_OK;
    NEED(engine);
    *engine = NULL;
    if (options != NULL)
        status = check_size("trt_engine_options", options->struct_size, sizeof *options);
    if (status == TRT_OK)
        status = trt_start(NULL);
    if (status == TRT_OK)
        status = call("engine_open", "(KK)", NUMBER(options), NUMBER(engine));
    if (status == TRT_OK)
        pthread_once(&once, at_exit);
    return status;
}

int trt_engine_get_info(trt_engine *engine, trt_engine_info *info)
{
    int status;
    NEED(engine);
    NEED(info);
    status = check_size("trt_engine_info", info->struct_size, sizeof *info);
    return status == TRT_OK ? call("engine_info", "(KK)", NUMBER(engine), NUMBER(info)) : status;
}

int trt_voice_name(trt_engine *engine, size_t index, char *name, size_t size)
{
    NEED(engine);
    NEED(name);
    return call("voice_name", "(KKKK)", NUMBER(engine), NUMBER(index), NUMBER(name), NUMBER(size));
}

int trt_voice_load(trt_engine *engine, const char *name, int paths, trt_voice **voice)
{
    NEED(voice);
    *voice = NULL;
    NEED(engine);
    return call("voice_load", "(KyiK)", NUMBER(engine), name, paths, NUMBER(voice));
}

int trt_voice_from_clips(trt_engine *engine, const trt_clip *clips, size_t count, trt_voice **voice)
{
    NEED(voice);
    *voice = NULL;
    NEED(engine);
    NEED(clips);
    return call("voice_from_clips", "(KKKK)", NUMBER(engine), NUMBER(clips), NUMBER(count), NUMBER(voice));
}

int trt_voice_from_latents(trt_engine *engine, const float *autoregressive, size_t autoregressive_count,
                           const float *diffusion, size_t diffusion_count, trt_voice **voice)
{
    NEED(voice);
    *voice = NULL;
    NEED(engine);
    NEED(autoregressive);
    return call("voice_from_latents", "(KKKKKK)", NUMBER(engine), NUMBER(autoregressive), NUMBER(autoregressive_count),
                NUMBER(diffusion), NUMBER(diffusion_count), NUMBER(voice));
}

int trt_voice_latents(trt_voice *voice, float *autoregressive, size_t autoregressive_count, float *diffusion,
                      size_t diffusion_count)
{
    NEED(voice);
    NEED(autoregressive);
    return call("voice_latents", "(KKKKK)", NUMBER(voice), NUMBER(autoregressive), NUMBER(autoregressive_count),
                NUMBER(diffusion), NUMBER(diffusion_count));
}

static int close_handle(const char *kind, const void *handle)
{
    return handle == NULL ? TRT_OK : call("close", "(sK)", kind, NUMBER(handle));
}

int trt_engine_close(trt_engine *engine)
{
    return close_handle("engine", engine);
}

int trt_voice_close(trt_voice *voice)
{
    return close_handle("voice", voice);
}

int trt_job_close(trt_job *job)
{
    return close_handle("job", job);
}

int trt_stream_close(trt_stream *stream)
{
    return close_handle("stream", stream);
}

int trt_submit(trt_engine *engine, const trt_request *request, trt_job **job)
{
    int status;
    NEED(job);
    *job = NULL;
    NEED(engine);
    NEED(request);
    status = check_request(request);
    return status == TRT_OK ? call("submit", "(KKK)", NUMBER(engine), NUMBER(request), NUMBER(job)) : status;
}

int trt_job_poll(trt_job *job)
{
    return trt_job_wait(job, 0);
}

int trt_job_wait(trt_job *job, double seconds)
{
    NEED(job);
    return call("job_wait", "(Kd)", NUMBER(job), seconds);
}

/* Copy a clip that a job has made, of which count samples are known; closes: and close it in the same call. */
static int take_audio(trt_job *job, size_t index, size_t count, trt_audio *audio, int closes)
{
    int status;
    float *samples = malloc(count == 0 ? 1 : count * sizeof *samples);
    if (samples == NULL) {
        if (closes)
            close_handle("job", job);
        return fail(TRT_ERROR_MEMORY, "no memory for %zu samples", count);
    }
    status = call("job_copy", "(KKKKi)", NUMBER(job), NUMBER(index), NUMBER(samples), NUMBER(audio), closes);
    if (status == TRT_OK)
        audio->samples = samples;
    else
        free(samples);
    return status;
}

int trt_job_audio(trt_job *job, size_t index, trt_audio *audio)
{
    size_t count = 0;
    int status;
    NEED(audio);
    memset(audio, 0, sizeof *audio);
    NEED(job);
    status = call("job_count", "(KKK)", NUMBER(job), NUMBER(index), NUMBER(&count));
    return status == TRT_OK ? take_audio(job, index, count, audio, 0) : status;
}

int trt_job_problems(trt_job *job, size_t index, char *text, size_t size)
{
    NEED(job);
    NEED(text);
    return call("job_problems", "(KKKK)", NUMBER(job), NUMBER(index), NUMBER(text), NUMBER(size));
}

int trt_job_cancel(trt_job *job)
{
    NEED(job);
    return call("job_cancel", "(K)", NUMBER(job));
}

int trt_synthesize(trt_engine *engine, const trt_request *request, trt_audio *audio)
{
    trt_job *job = NULL;
    size_t count = 0;
    int status;
    NEED(audio);
    memset(audio, 0, sizeof *audio);
    NEED(engine);
    NEED(request);
    status = check_request(request);
    if (status == TRT_OK) /* few calls: each waits for Python's other threads to make room */
        status = call("synthesize", "(KKKK)", NUMBER(engine), NUMBER(request), NUMBER(&job), NUMBER(&count));
    return status == TRT_OK ? take_audio(job, 0, count, audio, 1) : status;
}

static int open_stream(trt_engine *engine, const trt_request *request, int lent, int live, trt_stream **stream)
{
    int status = check_request(request);
    if (status == TRT_OK)
        status = call("stream_open", "(KKiiK)", NUMBER(engine), NUMBER(request), lent, live, NUMBER(stream));
    return status;
}

int trt_stream_open(trt_engine *engine, const trt_request *request, trt_stream **stream)
{
    NEED(stream);
    *stream = NULL;
    NEED(engine);
    NEED(request);
    return open_stream(engine, request, 0, 0, stream);
}

int trt_stream_open_live(trt_engine *engine, const trt_request *request, trt_stream **stream)
{
    NEED(stream);
    *stream = NULL;
    NEED(engine);
    NEED(request);
    return open_stream(engine, request, 0, 1, stream);
}

int trt_stream_feed(trt_stream *stream, const char *text)
{
    NEED(stream);
    NEED(text);
    return call("stream_feed", "(Kyi)", NUMBER(stream), text, 0);
}

int trt_stream_finish(trt_stream *stream)
{
    NEED(stream);
    return call("stream_feed", "(Kyi)", NUMBER(stream), "", 1);
}

int trt_stream_next(trt_stream *stream, double seconds, trt_chunk *chunk)
{
    NEED(chunk);
    memset(chunk, 0, sizeof *chunk);
    NEED(stream);
    return call("stream_next", "(KdK)", NUMBER(stream), seconds, NUMBER(chunk));
}

int trt_stream_cancel(trt_stream *stream)
{
    NEED(stream);
    return call("stream_cancel", "(K)", NUMBER(stream));
}

int trt_speak(trt_engine *engine, const trt_request *request, trt_chunk_fn fn, void *user)
{
    trt_stream *stream = NULL;
    trt_chunk chunk;
    int status;
    NEED(engine);
    NEED(request);
    NEED(fn);
    status = open_stream(engine, request, 1, 0, &stream); /* of which an engine's close leaves the pieces to us */
    if (status != TRT_OK)
        return status;
    while ((status = trt_stream_next(stream, -1, &chunk)) == TRT_OK && fn(&chunk, user))
        continue;
    close_handle("stream", stream);
    return status == TRT_END ? TRT_OK : status;
}

int trt_write_wav(const char *path, const float *samples, size_t count)
{
    int status;
    NEED(path);
    NEED(samples);
    status = trt_start(NULL);
    return status == TRT_OK ? call("write_wav", "(yKK)", path, NUMBER(samples), NUMBER(count)) : status;
}
