// Two sentences at once, decoded side by side, then one that is heard while it is made.
#include <cstdio>
#include <tortoise_rt.hpp>

int main() {
    try {
        trt::engine engine;
        trt::voice tenor = engine.load_voice("tenor");

        trt::request first("Good morning."), second("And good night.");
        first.seed = second.seed = 7;
        second.voice = tenor.get();
        trt::job one = engine.submit(first), other = engine.submit(second);
        one.audio().write("morning.wav");
        other.audio().write("night.wav");

        std::size_t samples = 0;
        engine.speak(first, [&](const trt_chunk &piece) {
            samples += piece.count; // to a loudspeaker, a telephone, ...
            return true;
        });
        std::printf("%.2f s of speech\n", static_cast<double>(samples) / TRT_SAMPLE_RATE);
    } catch (const trt::error &error) {
        std::fprintf(stderr, "%s: %s\n", error.name(), error.what());
        return 1;
    }
}
