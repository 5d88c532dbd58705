#include <stdio.h>
#include <tortoise_rt.h>

int main(void) {
    trt_engine *engine = NULL;
    trt_audio audio = {0};
    trt_request request;
    int status = trt_engine_open(NULL, &engine); // NULL: the engine that ships

    if (status == TRT_OK) {
        trt_request_init(&request, sizeof request);
        request.text = "Hello there, how are you today?";
        request.seed = 7;
        status = trt_synthesize(engine, &request, &audio);
    }
    if (status == TRT_OK) {
        printf("%.2f s of speech\n", (double)audio.count / TRT_SAMPLE_RATE);
        status = trt_write_wav("hello.wav", audio.samples, audio.count);
    }
    if (status != TRT_OK)
        fprintf(stderr, "%s: %s\n", trt_status_name(status), trt_last_error());
    trt_free(audio.samples);
    trt_engine_close(engine);
    return status != TRT_OK;
}
