/* The library as a plug-in loads it: twice, from where it is named, unloaded in between.  plugin LIBRARY TOKENIZER */
#include <dlfcn.h>
#include <stdio.h>

#include <tortoise_rt.h>

int main(int count, char **arguments)
{
    for (int i = 0; count > 2 && i < 2; i++) {
        void *library = dlopen(arguments[1], RTLD_NOW | RTLD_LOCAL);
        int (*init)(trt_engine_options *, size_t), (*open_engine)(const trt_engine_options *, trt_engine **);
        int (*close_engine)(trt_engine *);
        trt_engine_options options;
        trt_engine *engine;
        if (library == NULL)
            return 1;
        *(void **)&init = dlsym(library, "trt_engine_options_init");
        *(void **)&open_engine = dlsym(library, "trt_engine_open");
        *(void **)&close_engine = dlsym(library, "trt_engine_close");
        init(&options, sizeof options);
        options.backend = "fake";
        options.tokenizer = arguments[2];
        printf("%d %d\n", open_engine(&options, &engine), close_engine(engine));
        dlclose(library);
    }
    return 0;
}
