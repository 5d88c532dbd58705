/* The way into Python: finding the environment, starting it as a guest in somebody's process, calling embedded.py.
 *
 * libpython is opened at run time rather than linked, so that a program starts where there is none and gets an error code.
 * Compiled by build.py with TRT_VERSION, TRT_PYTHON (of the environment), TRT_LIBPYTHON (path) and TRT_SONAME (name).
 */
#define _GNU_SOURCE 1
#include <Python.h>

#include <dlfcn.h>
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "python.h"

#define STRING(number) #number
#define DOTTED(major, minor) STRING(major) "." STRING(minor)
#define PYTHON_VERSION DOTTED(PY_MAJOR_VERSION, PY_MINOR_VERSION)
#define INSTALL "tortoise-rt capi build makes a library for the environment it is run in"

/* --- the functions of libpython that are used --- */

#define PYTHON_FUNCTIONS(X)                                                                                            \
    X(PyConfig_Clear) X(PyConfig_InitIsolatedConfig) X(PyConfig_SetBytesString) X(PyErr_Fetch)                         \
    X(PyErr_NormalizeException) X(PyEval_SaveThread) X(PyGILState_Ensure) X(PyGILState_Release) X(PyImport_ImportModule) \
    X(PyObject_CallObject) X(PyObject_GetAttrString) X(PyObject_Str) X(PyPreConfig_InitIsolatedConfig)                 \
    X(PyStatus_Exception) X(PyTuple_GetItem) X(PyLong_AsLong) X(PyUnicode_AsUTF8) X(Py_DecRef)                         \
    X(Py_GetVersion) X(Py_InitializeFromConfig) X(Py_IsInitialized) X(Py_PreInitialize) X(Py_VaBuildValue)

#define POINTER(name) __typeof__(name) *name;
static struct { PYTHON_FUNCTIONS(POINTER) } py;
#undef POINTER

static pthread_mutex_t starting = PTHREAD_MUTEX_INITIALIZER;
static PyObject *bridge;  /* the module tortoise_rt.capi.embedded, once Python is started */
static pid_t owner;       /* the process that starts it, or has */
static int guest;         /* 1: Python runs because this library started it */
static int broken;        /* 1: Python could not be initialised, and cannot be tried again */
static char environment[PATH_MAX]; /* the python that was chosen */

/* The message of the exception that is set, which is cleared. */
static void take_exception(char *message, size_t size)
{
    PyObject *type = NULL, *value = NULL, *traceback = NULL, *text;
    const char *said = NULL;
    py.PyErr_Fetch(&type, &value, &traceback);
    py.PyErr_NormalizeException(&type, &value, &traceback);
    text = value == NULL ? NULL : py.PyObject_Str(value);
    if (text != NULL)
        said = py.PyUnicode_AsUTF8(text);
    snprintf(message, size, "%s", said == NULL ? "no message" : said);
    py.Py_DecRef(text);
    py.Py_DecRef(type);
    py.Py_DecRef(value);
    py.Py_DecRef(traceback);
}

/* Whether Python is a parent's, of which only this thread is left. */
static int is_forked(void)
{
    const pid_t started = __atomic_load_n(&owner, __ATOMIC_ACQUIRE);
    return started != 0 && started != getpid();
}

static int fail_forked(void)
{
    return fail(TRT_ERROR_FORK, "this process was forked after the library was started in its parent: start it after the "
                                "fork, or run another program in the child");
}

int call(const char *function, const char *format, ...)
{
    PyGILState_STATE state;
    PyObject *arguments, *callable, *answer = NULL, *said;
    const char *message = NULL;
    va_list values;
    int status;

    if (is_forked())
        return fail_forked();
    if (__atomic_load_n(&bridge, __ATOMIC_ACQUIRE) == NULL)
        return fail(TRT_ERROR_CLOSED, "nothing is open: open an engine first");
    if (!py.Py_IsInitialized())
        return fail(TRT_ERROR_CLOSED, "the program has ended the Python that it ran, and the engines with it");
    state = py.PyGILState_Ensure();
    va_start(values, format);
    arguments = py.Py_VaBuildValue(format, values);
    va_end(values);
    callable = py.PyObject_GetAttrString(bridge, function);
    if (arguments != NULL && callable != NULL)
        answer = py.PyObject_CallObject(callable, arguments);
    if (answer != NULL && (said = py.PyTuple_GetItem(answer, 1)) != NULL)
        message = py.PyUnicode_AsUTF8(said);
    if (message != NULL) {
        status = (int)py.PyLong_AsLong(py.PyTuple_GetItem(answer, 0));
        if (status >= TRT_ERROR_ARGUMENT)
            fail(status, "%s", message);
    } else {
        char problem[1024];
        take_exception(problem, sizeof problem);
        status = fail(TRT_ERROR_INTERNAL, "%s failed: %s", function, problem);
    }
    py.Py_DecRef(answer);
    py.Py_DecRef(callable);
    py.Py_DecRef(arguments);
    py.PyGILState_Release(state);
    return status;
}

/* --- finding and starting it --- */

static void folder_of(char *path)
{
    char *slash = strrchr(path, '/');
    if (slash != NULL)
        *slash = 0;
}

/* The folder with lib/python3.x of the python in path: above the "home" of a virtual environment, else above its own. */
static void find_base(const char *path, char *base)
{
    char name[PATH_MAX + 16], line[PATH_MAX + 16], home[PATH_MAX];
    FILE *settings;
    if (realpath(path, base) == NULL)
        snprintf(base, PATH_MAX, "%s", path);
    folder_of(base);
    snprintf(name, PATH_MAX, "%s", path);
    folder_of(name);
    folder_of(name);
    strcat(name, "/pyvenv.cfg");
    settings = fopen(name, "re");
    if (settings != NULL) {
        while (fgets(line, sizeof line, settings) != NULL)
            if (sscanf(line, " home = %4095[^\r\n]", home) == 1)
                snprintf(base, PATH_MAX, "%s", home);
        fclose(settings);
    }
    folder_of(base);
}

/* Never that of another Python: what is built into one is a file beside the other. */
static void *open_libpython(const char *python, const char *base)
{
    const char *folders[] = {"lib", "lib64"};
    char name[PATH_MAX + 128];
    void *library = NULL;
    if (strcmp(python, TRT_PYTHON) == 0)
        library = dlopen(TRT_LIBPYTHON, RTLD_NOW | RTLD_GLOBAL);
    for (int i = 0; i < 2 && library == NULL; i++) {
        snprintf(name, sizeof name, "%s/%s/" TRT_SONAME, base, folders[i]);
        library = dlopen(name, RTLD_NOW | RTLD_GLOBAL);
    }
    if (library == NULL && strcmp(base, "/usr") == 0) /* the system's: wherever the loader finds it */
        library = dlopen(TRT_SONAME, RTLD_NOW | RTLD_GLOBAL);
    return library;
}

/* Python prints where it looked when it does not find its modules, so that is seen to before. */
static int has_modules(const char *base)
{
    char lib[PATH_MAX + 64], lib64[PATH_MAX + 64];
    snprintf(lib, sizeof lib, "%s/lib/python" PYTHON_VERSION "/os.py", base);
    snprintf(lib64, sizeof lib64, "%s/lib64/python" PYTHON_VERSION "/os.py", base);
    return access(lib, R_OK) == 0 || access(lib64, R_OK) == 0;
}

/* Find the functions of libpython: in this process where it runs Python already, else in that of the environment. */
static int find_python(const char *python)
{
    char base[PATH_MAX];
    void *library = RTLD_DEFAULT;
    const char *version;
    int (*initialised)(void) = (int (*)(void))dlsym(RTLD_DEFAULT, "Py_IsInitialized");
    if (initialised == NULL || !initialised()) {
        if (access(python, X_OK) != 0)
            return fail(TRT_ERROR_ENVIRONMENT,
                        errno == EACCES
                            ? "this user may not run %s, or not look where it is: give the right, or set TORTOISE_RT_PYTHON to another"
                            : "there is no python at %s: set TORTOISE_RT_PYTHON to that of an environment with tortoise-rt",
                        python);
        find_base(python, base);
        if (!has_modules(base))
            return fail(TRT_ERROR_ENVIRONMENT, "%s is no Python " PYTHON_VERSION ", which this library was built for (there "
                        "is no %s/lib/python" PYTHON_VERSION "): " INSTALL, python, base);
        library = open_libpython(python, base);
        if (library == NULL)
            return fail(TRT_ERROR_ENVIRONMENT, "there is no " TRT_SONAME " for %s: install it (Debian: libpython"
                        PYTHON_VERSION "), or use a Python built with --enable-shared", python);
    }
#define FIND(name)                                                                                                     \
    if ((py.name = (__typeof__(py.name))dlsym(library, #name)) == NULL)                                                \
        return fail(TRT_ERROR_ENVIRONMENT, "the Python of %s has no " #name ": " INSTALL, python);
    FIND(Py_GetVersion)
    version = py.Py_GetVersion();
    if (strncmp(version, PYTHON_VERSION ".", strlen(PYTHON_VERSION ".")) != 0)
        return fail(TRT_ERROR_ENVIRONMENT, "%s runs Python %.*s; this library was built for " PYTHON_VERSION ": " INSTALL,
                    library == RTLD_DEFAULT ? "this process" : python, (int)strcspn(version, " "), version);
    PYTHON_FUNCTIONS(FIND)
#undef FIND
    return TRT_OK;
}

/* Python as a guest: no signal handlers, no locale, no standard streams, no environment variables, no arguments. */
static int initialise(const char *python)
{
    PyPreConfig before;
    PyConfig config;
    PyStatus status;
    py.PyPreConfig_InitIsolatedConfig(&before);
    before.utf8_mode = 1;
    status = py.Py_PreInitialize(&before);
    if (!py.PyStatus_Exception(status)) {
        py.PyConfig_InitIsolatedConfig(&config);
        config.install_signal_handlers = 0;
        config.pathconfig_warnings = 0;
        status = py.PyConfig_SetBytesString(&config, &config.program_name, python);
        if (!py.PyStatus_Exception(status))
            status = py.PyConfig_SetBytesString(&config, &config.executable, python);
        if (!py.PyStatus_Exception(status))
            status = py.Py_InitializeFromConfig(&config);
        py.PyConfig_Clear(&config);
    }
    broken = py.PyStatus_Exception(status);
    if (broken)
        return fail(TRT_ERROR_ENVIRONMENT, "Python does not start in %s: %s", python,
                    status.err_msg == NULL ? "it exits" : status.err_msg);
    py.PyEval_SaveThread();
    guest = 1;
    return TRT_OK;
}

static int start_python(const char *python)
{
    PyGILState_STATE state;
    PyObject *module;
    int status = find_python(python);
    if (status == TRT_OK && !py.Py_IsInitialized())
        status = initialise(python);
    if (status != TRT_OK)
        return status;
    state = py.PyGILState_Ensure();
    module = py.PyImport_ImportModule("tortoise_rt.capi.embedded");
    if (module == NULL) {
        char problem[1024];
        take_exception(problem, sizeof problem);
        status = fail(TRT_ERROR_ENVIRONMENT, "%s cannot run tortoise-rt (%s): %s -m pip install 'tortoise-rt[cpu]'", python,
                      problem, python);
    }
    py.PyGILState_Release(state);
    if (module == NULL)
        return status;
    __atomic_store_n(&bridge, module, __ATOMIC_RELEASE);
    status = call("start", "(iis)", guest, TRT_API_VERSION, TRT_VERSION);
    if (status != TRT_OK)
        __atomic_store_n(&bridge, NULL, __ATOMIC_RELEASE);
    return status;
}

int trt_start(const char *python)
{
    const char *wanted = python;
    int status = TRT_OK;
    if (is_forked())
        return fail_forked();
    if (wanted == NULL && ((wanted = getenv("TORTOISE_RT_PYTHON")) == NULL || *wanted == 0))
        wanted = TRT_PYTHON;
    pthread_mutex_lock(&starting);
    if (broken)
        status = fail(TRT_ERROR_ENVIRONMENT, "Python did not start in this process, and cannot be tried again in it");
    else if (guest && python != NULL && strcmp(python, environment) != 0)
        status = fail(TRT_ERROR_ENVIRONMENT, "Python runs already, in %s: name that one, or none", environment);
    else if (bridge == NULL) {
        if (!guest)
            snprintf(environment, sizeof environment, "%s", wanted);
        __atomic_store_n(&owner, getpid(), __ATOMIC_RELEASE);
        status = start_python(environment);
        if (status != TRT_OK && !guest && !broken) /* a child may still start it */
            __atomic_store_n(&owner, 0, __ATOMIC_RELEASE);
    }
    pthread_mutex_unlock(&starting);
    return status;
}
