/* The library as plug-ins load it: from where each has its own, unloaded in between.  plugin LIBRARY OTHER TOKENIZER */
#include <dlfcn.h>
#include <stdio.h>

#include <tortoise_rt.h>

int main(int count, char **arguments)
{
    for (int i = 0; count > 3 && i < 2; i++) {
        void *library = dlopen(arguments[1 + i], RTLD_NOW | RTLD_LOCAL);
        int (*init)(trt_engine_options *, size_t), (*open_engine)(const trt_engine_options *, trt_engine **);
        int (*close_engine)(trt_engine *);
        trt_engine_options options;
        trt_engine *engine = NULL;
        int opened;
        if (library == NULL)
            return 1;
        *(void **)&init = dlsym(library, "trt_engine_options_init");
        *(void **)&open_engine = dlsym(library, "trt_engine_open");
        *(void **)&close_engine = dlsym(library, "trt_engine_close");
        init(&options, sizeof options);
        options.backend = "fake";
        options.tokenizer = arguments[3];
        opened = open_engine(&options, &engine);
        printf("%d %d %d\n", opened, engine != NULL, close_engine(engine));
        dlclose(library);
    }
    return 0;
}
