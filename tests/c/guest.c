/* The library leaves its host as it is: signals, locale, streams, folder, environment; it says that a fork is one; and a process
 * may end while it is at work. Prints what it finds wrong, and ends with 1.  LC_ALL=POSIX guest */
#define _POSIX_C_SOURCE 200809L
#include <errno.h>
#include <fenv.h>
#include <locale.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <tortoise_rt.h>

extern char **environ;
static int wrong;

struct state {
    void (*handlers[32])(int);
    int flags[32];
    sigset_t mask;
    char locale[256], folder[1024];
    size_t environment;
    int rounding;
    long streams[3];
    mode_t umask;
};

static void on_signal(int number)
{
    (void)number;
}

static void look(struct state *seen)
{
    struct sigaction action;
    memset(seen, 0, sizeof *seen);
    for (int i = 1; i < 32; i++)
        if (sigaction(i, NULL, &action) == 0) {
            seen->handlers[i] = action.sa_handler;
            seen->flags[i] = action.sa_flags;
        }
    pthread_sigmask(SIG_BLOCK, NULL, &seen->mask);
    snprintf(seen->locale, sizeof seen->locale, "%s", setlocale(LC_ALL, NULL));
    if (getcwd(seen->folder, sizeof seen->folder) == NULL)
        wrong = 1;
    for (char **entry = environ; *entry != NULL; entry++)
        if (strcmp(*entry, "ORT_DISABLE_TELEMETRY=1") != 0) /* which is the one that is added */
            seen->environment = 31 * seen->environment + (size_t)*entry + strlen(*entry);
    seen->rounding = fegetround();
    for (int i = 0; i < 3; i++) {
        struct stat status;
        seen->streams[i] = fstat(i, &status) == 0 ? (long)(31 * status.st_ino + status.st_mode) : -errno;
    }
    seen->umask = umask(0);
    umask(seen->umask);
}

static void expect(int condition, const char *what)
{
    if (!condition) {
        printf("wrong: %s (%s)\n", what, trt_last_error());
        wrong = 1;
    }
}

static void *open_engine(void *engine)
{
    expect(trt_engine_open(NULL, engine) == TRT_OK, "open");
    return NULL;
}

int main(void)
{
    pthread_attr_t small;
    struct state before, after;
    trt_engine *engine = NULL;
    trt_settings settings;
    trt_request request;
    trt_audio audio;
    trt_job *job;
    pthread_t thread;
    int status = 0;
    pid_t child;

    expect(setlocale(LC_ALL, "C.UTF-8") != NULL, "a locale that is not that of the environment");
    signal(SIGINT, on_signal);
    signal(SIGPIPE, on_signal);
    signal(SIGSEGV, on_signal);
    look(&before);
    child = fork(); /* before the library runs: a child may start it */
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 256 << 10);
    expect(pthread_create(&thread, &small, open_engine, &engine) == 0, "a thread"); /* that ends, with as small a stack as may be */
    pthread_join(thread, NULL);
    trt_settings_init(&settings, sizeof settings);
    settings.max_mel_tokens = 20;
    settings.num_autoregressive_samples = 1;
    settings.decoder = "hifigan";
    trt_request_init(&request, sizeof request);
    request.text = "Hello there.";
    request.settings = &settings;
    expect(trt_synthesize(engine, &request, &audio) == TRT_OK, "synthesize");
    trt_free(audio.samples);
    look(&after);
    expect(memcmp(before.handlers, after.handlers, sizeof before.handlers) == 0, "signal handlers");
    expect(memcmp(before.flags, after.flags, sizeof before.flags) == 0, "their flags");
    expect(memcmp(&before.mask, &after.mask, sizeof before.mask) == 0, "signal mask");
    expect(strcmp(before.locale, after.locale) == 0, "locale");
    expect(strcmp(before.folder, after.folder) == 0, "folder");
    expect(before.environment == after.environment, "environment");
    expect(before.rounding == after.rounding && before.umask == after.umask, "rounding, umask");
    expect(memcmp(before.streams, after.streams, sizeof before.streams) == 0, "standard streams");
    if (child == 0)
        return wrong;
    expect(waitpid(child, &status, 0) == child && status == 0, "a child of before");
    child = fork();
    if (child == 0) {
        expect(trt_synthesize(engine, &request, &audio) == TRT_ERROR_FORK, "synthesize in a child");
        expect(trt_start(NULL) == TRT_ERROR_FORK, "start in a child");
        expect(trt_engine_close(engine) == TRT_ERROR_FORK, "close in a child");
        return wrong;
    }
    expect(waitpid(child, &status, 0) == child && status == 0, "a child of after");
    settings.num_autoregressive_samples = 400;
    settings.max_mel_tokens = 250;
    expect(trt_submit(engine, &request, &job) == TRT_OK, "submit");
    printf("said: %s\n", trt_job_poll(job) == TRT_PENDING ? "all" : "too early");
    return wrong; /* with the engine at work */
}
