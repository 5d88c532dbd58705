/* The library as plug-ins load it: from where each has its own, unloaded in between.  plugin LIBRARY OTHER TOKENIZER */
#include <dlfcn.h>
#include <stdio.h>

#include <tortoise_rt.h>

int main(int count, char **arguments)
{
    int (*init)(trt_engine_options *, size_t), (*open_engine)(const trt_engine_options *, trt_engine **);
    int (*close_engine)(trt_engine *);
    trt_engine *engines[2] = {NULL, NULL};
    trt_engine_options options;
    void *library;
    for (int i = 0; count > 3 && i < 2; i++) {
        if ((library = dlopen(arguments[1 + i], RTLD_NOW | RTLD_LOCAL)) == NULL)
            return 1;
        *(void **)&init = dlsym(library, "trt_engine_options_init");
        *(void **)&open_engine = dlsym(library, "trt_engine_open");
        init(&options, sizeof options);
        options.backend = "fake";
        options.tokenizer = arguments[3];
        printf("%d ", open_engine(&options, &engines[i]));
        dlclose(library);
    }
    if (engines[0] == NULL || (library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL)) == NULL)
        return 1;
    *(void **)&close_engine = dlsym(library, "trt_engine_close");
    for (int i = 0; i < 2; i++) /* both copies have the same Python */
        printf("%d ", close_engine(engines[i]));
    return dlclose(library);
}
