/* What the two C files of the library share. Not for programs: their header is tortoise_rt.h. */
#ifndef TORTOISE_RT_PYTHON_H
#define TORTOISE_RT_PYTHON_H

#include <stdarg.h>

#pragma GCC visibility push(default)
#include "tortoise_rt.h"
#pragma GCC visibility pop

/* Set this thread's message; -> status. */
__attribute__((format(printf, 2, 3))) int fail(int status, const char *format, ...);

/* Call a function of embedded.py, which gives (status, message). The format is Py_BuildValue's, of a tuple. */
int call(const char *function, const char *format, ...);

#endif
