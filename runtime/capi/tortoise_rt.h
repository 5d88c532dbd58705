/* tortoise_rt.h: speech from text with TorToiSe models, from C. C99; C++ has tortoise_rt.hpp.
 *
 * A COMPLETE PROGRAM (examples/hello.c)
 *
 *     #include <stdio.h>
 *     #include <tortoise_rt.h>
 *
 *     int main(void) {
 *         trt_engine *engine = NULL;
 *         trt_audio audio = {0};
 *         trt_request request;
 *         int status = trt_engine_open(NULL, &engine); // NULL: the engine that ships
 *
 *         if (status == TRT_OK) {
 *             trt_request_init(&request, sizeof request);
 *             request.text = "Hello there, how are you today?";
 *             request.seed = 7;
 *             status = trt_synthesize(engine, &request, &audio);
 *         }
 *         if (status == TRT_OK) {
 *             printf("%.2f s of speech\n", (double)audio.count / TRT_SAMPLE_RATE);
 *             status = trt_write_wav("hello.wav", audio.samples, audio.count);
 *         }
 *         if (status != TRT_OK)
 *             fprintf(stderr, "%s: %s\n", trt_status_name(status), trt_last_error());
 *         trt_free(audio.samples);
 *         trt_engine_close(engine);
 *         return status != TRT_OK;
 *     }
 *
 *     $ tortoise-rt capi build -o capi
 *     $ export PKG_CONFIG_PATH=capi/lib/pkgconfig
 *     $ cc -std=c99 hello.c $(pkg-config --cflags --libs tortoise_rt) -o hello && ./hello
 *
 * THREADS
 *   - Every function may be called from any thread at any time, also from a callback; but one thread at a time takes the
 *     pieces of a stream.
 *   - Share one engine among all threads: what they ask for is decoded side by side, which is faster than one after
 *     another. Functions that wait hold no lock that others need.
 *   - The library starts a few threads of its own. Callbacks of trt_speak() run in the thread that called it, the log's in
 *     a thread of the library's, one message at a time. Both may call whatever they like, and must return: no longjmp(), no
 *     exceptions.
 *   - A thread that calls needs a stack of 256 KiB.
 *   - After fork() the library works in the parent only; in the child every call gives TRT_ERROR_FORK, unless the library
 *     had not been started before the fork. A child that execs is free to do anything; one that does not ends best by
 *     _exit(), as after any fork of a process with threads.
 *
 * OWNERSHIP
 *   - Engines, voices, jobs and streams are handles: they look like pointers, are never looked into, and a handle that was
 *     closed or never was one gives TRT_ERROR_CLOSED, not a crash. Close each once; NULL may be closed. Closing an engine
 *     ends its jobs and streams and closes them and its voices.
 *   - What you pass in (text, structs, samples) is copied before the call returns.
 *   - What you get is yours where a line says "trt_free() it", else it lives as long as the line says.
 *   - Text and paths are UTF-8 that ends with a zero. Samples are float in [-1, 1], one channel, TRT_SAMPLE_RATE a second.
 *
 * STRUCTS that may grow begin with struct_size. Fill one with its init function and sizeof, then set what you want: fields
 *   are added at the end, and a program compiled with a smaller struct keeps working. Numbers are int64_t or double, -1 where
 *   nothing is said, strings NULL. trt_clip, trt_audio and trt_chunk stay as they are.
 *
 * ERRORS are status codes (enum trt_status), and a sentence from trt_last_error(). Nothing is printed, no signal handler is
 *   set, neither locale nor standard streams are touched.
 *
 * PYTHON does the work, in the environment that the library was built in or the one that TORTOISE_RT_PYTHON names (the path
 *   of its python). PYTHONPATH and PYTHONHOME are not read. TORTOISE_RT_THREADS (threads that compute),
 *   TORTOISE_RT_CACHE and TORTOISE_RT_VOICES mean what they mean for the command tortoise-rt. ORT_DISABLE_TELEMETRY=1 is put
 *   into the environment by the first trt_engine_open() of onnx, unless it is there: ONNX Runtime would send reports.
 */
#ifndef TORTOISE_RT_H
#define TORTOISE_RT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define TRT_API_VERSION 1
#define TRT_SAMPLE_RATE 24000

/* Opaque handles. */
typedef struct trt_engine trt_engine;
typedef struct trt_voice trt_voice;
typedef struct trt_job trt_job;
typedef struct trt_stream trt_stream;

enum trt_status {
    TRT_OK = 0,
    TRT_PENDING = 1,                /* not there yet: ask again */
    TRT_END = 2,                    /* there is no more */
    TRT_ERROR_ARGUMENT = 10,        /* a null pointer, a wrong struct_size, something that does not apply */
    TRT_ERROR_CLOSED = 11,          /* a handle that is not open */
    TRT_ERROR_TEXT = 12,            /* empty, too long, not UTF-8 */
    TRT_ERROR_VOICE = 13,           /* unknown, or of another model */
    TRT_ERROR_AUDIO = 14,           /* a clip that cannot be used */
    TRT_ERROR_SETTINGS = 15,        /* a setting out of its range */
    TRT_ERROR_BUNDLE = 16,          /* an engine's files: missing, damaged, made for another machine */
    TRT_ERROR_ENGINE = 17,          /* a network that the engine lacks, or that failed */
    TRT_ERROR_BUSY = 18,            /* too many requests are in flight: try again later */
    TRT_ERROR_CANCELLED = 19,       /* it was given up */
    TRT_ERROR_TIMEOUT = 20,         /* its time was over */
    TRT_ERROR_OUTPUT = 21,          /* a file could not be written */
    TRT_ERROR_MEMORY = 22,          /* out of memory */
    TRT_ERROR_ENVIRONMENT = 23,     /* no Python, or one without what is needed; the message says how to get it */
    TRT_ERROR_FORK = 24,            /* the process was forked after the library was started */
    TRT_ERROR_INTERNAL = 25         /* a fault of the library's: please report it */
};

/* "TRT_OK" and so on; a string that is never freed. For an unknown number, "unknown status". */
const char *trt_status_name(int status);

/* What the last failed call of this thread failed with, one line; "" before any. Lives until this thread's next failure. */
const char *trt_last_error(void);

/* The version of the library, as "0.1.0", never freed; and the TRT_API_VERSION that it was compiled with. */
const char *trt_version(void);
int trt_api_version(void);

/* Start Python now, rather than in the first trt_engine_open(). python: the path of an environment's python; NULL: what
 * TORTOISE_RT_PYTHON names, else the environment that the library was built in. Once started it goes on until the process
 * ends, and calls with NULL do nothing; another python cannot be started then. Where the process runs Python already, that
 * one is used. TRT_ERROR_ENVIRONMENT. */
int trt_start(const char *python);

enum trt_level { TRT_LOG_DEBUG = 10, TRT_LOG_INFO = 20, TRT_LOG_WARNING = 30, TRT_LOG_ERROR = 40 };

/* level: an enum trt_level; message: one or more lines that live during the call. */
typedef void (*trt_log_fn)(int level, const char *message, void *user);

/* Have what the library has to say from a level on told to fn; NULL: nobody, as at first. user is passed on and must live as
 * long as fn is set: when the call returns, the fn before has run for the last time, unless it is what calls. Starts Python. */
int trt_set_log(trt_log_fn fn, void *user, int level);

/* --- engines --- */

typedef struct trt_engine_options {
    size_t struct_size;
    const char *engine;      /* folder of a bundle; NULL: the engine that ships */
    const char *checkpoints; /* or a folder of checkpoints, run with PyTorch */
    const char *backend;     /* "onnx" or "torch"; NULL: as the files need */
    const char *device;      /* "cpu", "cuda", "cuda:1"; NULL: that of the bundle */
    const char *precision;   /* "fp32", "fp16", "bf16", of checkpoints only */
    const char *tokenizer;   /* path of a tokenizer.json; NULL: the engine's */
    const char *voices;      /* folder of voices that is looked through first */
    int64_t rows;            /* samples that are decoded side by side, of all requests; more take more memory */
    int64_t queue;           /* requests in flight at a time; one more is TRT_ERROR_BUSY */
    int64_t strict;          /* 1: the same bits whatever else runs, at the price of speed */
} trt_engine_options;

int trt_engine_options_init(trt_engine_options *options, size_t struct_size);

/* Open an engine; options may be NULL. Close it with trt_engine_close(). Networks are loaded when they are first needed.
 * TRT_ERROR_ENVIRONMENT, _BUNDLE, _ENGINE, _SETTINGS. */
int trt_engine_open(const trt_engine_options *options, trt_engine **engine);

/* End what is in flight, within one step of the network, and close the engine with its voices, jobs and streams. */
int trt_engine_close(trt_engine *engine);

typedef struct trt_engine_info {
    size_t struct_size;
    int64_t has_diffusion;      /* 1: the decoder "diffusion" */
    int64_t has_hifigan;        /* 1: the decoder "hifigan", and streams that are heard while they are drawn */
    int64_t can_rank;           /* 1: several samples can be drawn and the best be chosen */
    int64_t has_random_voices;  /* 1: the voice "random" */
    int64_t can_listen;         /* 1: words in [brackets] can be cut out, and clips be checked */
    int64_t autoregressive_width, diffusion_width; /* numbers in a voice's latents; the second 0 where it has none */
    int64_t rows;               /* samples that can be decoded side by side */
    int64_t in_flight;          /* requests, now */
    int64_t steps;              /* decoding steps so far */
    int64_t decoded;            /* codes they decoded: decoded / steps is how many rows shared a step */
    char backend[16], device[16], default_voice[64];
    char source[256], notice[256]; /* where it was opened from; what listeners must be told. Cut where they are longer */
} trt_engine_info;

/* What an engine can do and has done. Set info->struct_size to sizeof *info; as much is filled. */
int trt_engine_get_info(trt_engine *engine, trt_engine_info *info);

/* --- voices --- */

/* The name of voice number index, from 0 on, written to name (size bytes, cut where it is longer). TRT_END past the last. */
int trt_voice_name(trt_engine *engine, size_t index, char *name, size_t size);

/* Load a voice: a name ("alto"), several ("alto&tenor", "alto:0.7&tenor:0.3"), "random" (another for each seed) or, with
 * paths other than 0, a folder of clips, a clip or a file of latents. NULL: the engine's own. Set paths to 0 for names from
 * people who must not read this machine's files. Close it with trt_voice_close(). TRT_ERROR_VOICE, _AUDIO. */
int trt_voice_load(trt_engine *engine, const char *name, int paths, trt_voice **voice);

typedef struct trt_clip {
    const float *samples; /* one channel */
    size_t count;         /* of samples: 0.1 s to 30 min */
    int64_t rate;         /* samples a second */
} trt_clip;

/* A voice from recordings in memory: a few of about 10 s are enough. TRT_ERROR_AUDIO, _VOICE. */
int trt_voice_from_clips(trt_engine *engine, const trt_clip *clips, size_t count, trt_voice **voice);

/* A voice from latents, as trt_voice_latents() gives them, of the widths that trt_engine_get_info() tells. diffusion may be
 * NULL where the decoder is hifigan. TRT_ERROR_VOICE. */
int trt_voice_from_latents(trt_engine *engine, const float *autoregressive, size_t autoregressive_count,
                           const float *diffusion, size_t diffusion_count, trt_voice **voice);

/* Compute a voice's latents into buffers of yours, of the widths above exactly; diffusion may be NULL, with a count of 0. */
int trt_voice_latents(trt_voice *voice, float *autoregressive, size_t autoregressive_count, float *diffusion,
                      size_t diffusion_count);

int trt_voice_close(trt_voice *voice);

/* --- what is said, and how --- */

/* Settings that are not set are the preset's, then the engine's, as in Python: GUIDE.md says what each does. */
typedef struct trt_settings {
    size_t struct_size;
    const char *preset;                /* "ultra_fast", "fast", "standard", "high_quality", "turbo", "swift" */
    const char *decoder;               /* "diffusion" or "hifigan" */
    const char *sampler;               /* "ancestral", "ddim", "dpm++2m", "dpm++2m_sde" */
    int64_t num_autoregressive_samples; /* drawn; the best is heard */
    int64_t max_mel_tokens;            /* longest clip in codes, of 46 ms each */
    int64_t batch_rows;                /* most of the engine's rows that the request may hold */
    int64_t top_k;                     /* 0: off */
    int64_t greedy, typical_sampling;  /* 0 or 1 */
    int64_t diffusion_iterations;      /* 1 to 4000 */
    int64_t cond_free;                 /* 0 or 1: guidance */
    int64_t enable_redaction;          /* 0: words in [brackets] are heard */
    double temperature;                /* above 0 */
    double top_p, typical_mass;        /* above 0, to 1 */
    double repetition_penalty;         /* above 0 */
    double diffusion_temperature;      /* 0 to 1 */
    double eta, cond_free_k, cond_free_share;
    double cvvp_amount;                /* 0 to 1: how much the voice counts in choosing the best */
    int64_t k;                         /* clips that a job gives, the best of its samples; more than 1 of jobs only */
    int64_t check;                     /* 1: an aligner compares clips with the text, and bad ones are drawn again, with the
                                          next seeds. Of clips only */
    int64_t max_retries;               /* how often that may be; -1: twice */
} trt_settings;

int trt_settings_init(trt_settings *settings, size_t struct_size);

enum trt_priority {
    TRT_PRIORITY_STREAM = 0, /* somebody is listening already */
    TRT_PRIORITY_NORMAL = 1, /* somebody waits */
    TRT_PRIORITY_BULK = 2    /* nobody waits */
};

typedef struct trt_request {
    size_t struct_size;
    const char *text;
    trt_voice *voice;             /* NULL: the engine's own */
    const trt_settings *settings; /* NULL: the engine's own */
    int64_t seed;                 /* the same seed, the same speech; -1: another each time */
    int64_t priority;             /* an enum trt_priority; -1: normal. Of clips only */
    double timeout;               /* seconds after which it is given up; -1: never. Of clips only */
    int64_t split;                /* of streams only, as all below; 0: the text is one clip, else it is cut into sentences */
    double pause;                 /* seconds of silence between sentences; -1: 0.25 */
    int64_t chunk, first_chunk;   /* codes that a piece, and the first, waits for; -1: few first, then as many as there is time */
} trt_request;

int trt_request_init(trt_request *request, size_t struct_size);

/* --- clips: a text of a sentence or two, all of it at once --- */

typedef struct trt_audio {
    float *samples;   /* trt_free() it */
    size_t count;
    int64_t seed;     /* that it was said with */
    int64_t complete; /* 0: the voice did not stop by itself, so words may be missing: split the text */
    int64_t tries;    /* that were made of it: more than 1 where the setting check found it bad */
    int64_t problems; /* that an aligner still finds: trt_job_problems() names them; -1: it was not checked */
} trt_audio;

/* Say a text and wait for it. On failure audio is all zero. TRT_ERROR_TEXT, _VOICE, _SETTINGS, _ENGINE, _BUSY, _TIMEOUT,
 * _CANCELLED (the engine was closed). */
int trt_synthesize(trt_engine *engine, const trt_request *request, trt_audio *audio);

/* The same without waiting: poll the job or wait for it, take its audio, close it with trt_job_close(). What is wrong with
 * the request's text may be told by the job only. */
int trt_submit(trt_engine *engine, const trt_request *request, trt_job **job);

/* TRT_OK: its audio is there. TRT_PENDING: not yet. Else what it failed with. */
int trt_job_poll(trt_job *job);

/* Wait for as many seconds at most, below 0 for ever; -> as trt_job_poll(). */
int trt_job_wait(trt_job *job, double seconds);

/* A copy of clip number index, the best is 0, each time; waits for it. TRT_END past the last. Where it is not TRT_OK, audio
 * is all zero. */
int trt_job_audio(trt_job *job, size_t index, trt_audio *audio);

/* What an aligner still finds wrong with clip number index, as "missing "word"; no stop within the limit of codes", written
 * to text (size bytes, cut where it is longer); "" where nothing, or where it was not checked. Waits. TRT_END past the last. */
int trt_job_problems(trt_job *job, size_t index, char *text, size_t size);

/* Give the job up; its rows are free by the next step. It then fails with TRT_ERROR_CANCELLED unless it was done. */
int trt_job_cancel(trt_job *job);

/* Close a job, which gives it up where it is not done. */
int trt_job_close(trt_job *job);

/* --- streams: a text of any length, heard while it is drawn --- */

typedef struct trt_chunk {
    const float *samples; /* the stream's: until its next piece is taken, or it or its engine is closed */
    size_t count;
    int64_t sequence;     /* number of the piece, from 0 on */
    int64_t sentence;     /* number of the sentence, from 0 on, which is said with seed + sentence */
} trt_chunk;

/* Begin to say a text. Without a preset, each sentence is one sample by hifigan and is heard while it is drawn; where the
 * settings ask for more, or for diffusion, a piece is a sentence. Pieces joined are what is said. Eight are made ahead or
 * so; who does not take them stops the stream, not others. Close it with trt_stream_close(). */
int trt_stream_open(trt_engine *engine, const trt_request *request, trt_stream **stream);

/* The same of a text that is still being written, by a person or a language model: request->text is its beginning, or NULL;
 * trt_stream_feed() goes on with it, trt_stream_finish() says that it has ended. A sentence is said when its end is there. */
int trt_stream_open_live(trt_engine *engine, const trt_request *request, trt_stream **stream);

/* More of the text, in pieces of any size, cut anywhere: within a word, or within a character. Waits for nothing; what is not
 * said yet is kept. TRT_ERROR_TEXT, _ARGUMENT (the text has ended), else what the stream failed with. */
int trt_stream_feed(trt_stream *stream, const char *text);

/* The text has ended. */
int trt_stream_finish(trt_stream *stream);

/* Take the next piece; wait for it for as many seconds at most, below 0 for ever. TRT_PENDING: not yet. TRT_END: there is
 * no more. Else what it failed with. Where it is not TRT_OK, chunk is all zero. */
int trt_stream_next(trt_stream *stream, double seconds, trt_chunk *chunk);

/* Give the stream up, from any thread: whoever waits for a piece gets TRT_ERROR_CANCELLED at once. */
int trt_stream_cancel(trt_stream *stream);

/* Close a stream, which gives it up where it has not ended, and with it its last piece. */
int trt_stream_close(trt_stream *stream);

/* chunk and its samples live during the call, whatever is closed meanwhile. Return 0 to stop, anything else to go on. */
typedef int (*trt_chunk_fn)(const trt_chunk *chunk, void *user);

/* Say a text piece by piece to fn, in this thread. TRT_OK: all was said, or fn said stop. TRT_ERROR_CANCELLED: the engine was
 * closed. */
int trt_speak(trt_engine *engine, const trt_request *request, trt_chunk_fn fn, void *user);

/* --- the rest --- */

/* Write samples to a .wav, .flac or .ogg of 16 bits, marked as synthetic speech. It appears when it is complete; its folder
 * must exist. Starts Python. TRT_ERROR_OUTPUT. */
int trt_write_wav(const char *path, const float *samples, size_t count);

/* Free what a line above says so of. NULL is nothing. */
void trt_free(void *memory);

#ifdef __cplusplus
}
#endif
#endif
