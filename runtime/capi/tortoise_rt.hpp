// tortoise_rt.hpp: tortoise_rt.h for C++17. Handles close themselves, failures are exceptions. Nothing to link but the library.
//
//     #include <tortoise_rt.hpp>
//
//     int main() {
//         trt::engine engine;
//         trt::request request("Hello there.");
//         request.seed = 7;
//         trt::audio audio = engine.synthesize(request);
//         audio.write("hello.wav");
//     }
//
// What tortoise_rt.h says of threads, ownership and lifetime holds here, too. An engine must outlive its voices, jobs and
// streams, or these throw when they are used; destroying them then is harmless.
#ifndef TORTOISE_RT_HPP
#define TORTOISE_RT_HPP

#include <exception>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "tortoise_rt.h"

namespace trt {

// What a call failed with; what() is the message, status() an enum trt_status.
class error : public std::runtime_error {
public:
    explicit error(int status) : std::runtime_error(trt_last_error()), status_(status) {}
    int status() const noexcept { return status_; }
    const char *name() const noexcept { return trt_status_name(status_); }

private:
    int status_;
};

// Throw for a status that is a failure; -> any other.
inline int check(int status) {
    if (status >= TRT_ERROR_ARGUMENT)
        throw error(status);
    return status;
}

namespace detail {
template <auto close>
struct closer {
    template <class T>
    void operator()(T *handle) const noexcept { close(handle); }
};
template <class T, auto close>
using handle = std::unique_ptr<T, closer<close>>;
} // namespace detail

// Structs in which nothing is set yet.
struct options : trt_engine_options {
    options() { check(trt_engine_options_init(this, sizeof(trt_engine_options))); }
};
struct settings : trt_settings {
    settings() { trt::check(trt_settings_init(this, sizeof(trt_settings))); }
};
struct request : trt_request { // text must live until the request is given to an engine, and so must settings and voice
    explicit request(const char *said) { check(trt_request_init(this, sizeof(trt_request))); text = said; }
    explicit request(const std::string &said) : request(said.c_str()) {}
    explicit request(std::string &&) = delete;
};

class audio {
public:
    explicit audio(const trt_audio &made) : samples_(made.samples), made_(made) {}
    const float *begin() const noexcept { return made_.samples; }
    const float *end() const noexcept { return made_.samples + made_.count; }
    std::size_t size() const noexcept { return made_.count; }
    std::int64_t seed() const noexcept { return made_.seed; }
    bool complete() const noexcept { return made_.complete != 0; } // false: words may be missing
    std::int64_t tries() const noexcept { return made_.tries; }
    std::int64_t problems() const noexcept { return made_.problems; } // -1: it was not checked
    void write(const std::string &path) const { check(trt_write_wav(path.c_str(), made_.samples, made_.count)); }

private:
    detail::handle<void, trt_free> samples_;
    trt_audio made_;
};

class voice {
public:
    explicit voice(trt_voice *opened) : handle_(opened) {}
    trt_voice *get() const noexcept { return handle_.get(); }

private:
    detail::handle<trt_voice, trt_voice_close> handle_;
};

class job {
public:
    explicit job(trt_job *opened) : handle_(opened) {}
    // Whether it is done, after as many seconds at most; below 0 for ever. Throws what it failed with.
    bool wait(double seconds = -1) const { return check(trt_job_wait(get(), seconds)) == TRT_OK; }
    // Clip number index, the best is 0; throws std::out_of_range past the last.
    trt::audio audio(std::size_t index = 0) const {
        trt_audio made;
        if (check(trt_job_audio(get(), index, &made)) == TRT_END)
            throw std::out_of_range("the job has no clip of this number");
        return trt::audio(made);
    }
    // What an aligner still finds wrong with clip number index; see trt_job_problems.
    std::string problems(std::size_t index = 0) const {
        char found[1024];
        check(trt_job_problems(get(), index, found, sizeof found));
        return found;
    }
    void cancel() const { check(trt_job_cancel(get())); }
    trt_job *get() const noexcept { return handle_.get(); }

private:
    detail::handle<trt_job, trt_job_close> handle_;
};

class stream {
public:
    explicit stream(trt_stream *opened) : handle_(opened) {}
    // The next piece, which lives until the one after is taken; nothing at the end, or after as many seconds.
    std::optional<trt_chunk> next(double seconds = -1) {
        trt_chunk chunk;
        const int status = check(trt_stream_next(get(), seconds, &chunk));
        ended_ = status == TRT_END;
        return status == TRT_OK ? std::optional<trt_chunk>(chunk) : std::nullopt;
    }
    bool ended() const noexcept { return ended_; }
    // Go on with a text that is still being written, and end it; see engine::live.
    void feed(const std::string &text) const { check(trt_stream_feed(get(), text.c_str())); }
    void finish() const { check(trt_stream_finish(get())); }
    void cancel() const { check(trt_stream_cancel(get())); }
    trt_stream *get() const noexcept { return handle_.get(); }

private:
    detail::handle<trt_stream, trt_stream_close> handle_;
    bool ended_ = false;
};

class engine {
public:
    explicit engine(const trt_engine_options &chosen = options()) {
        trt_engine *opened = nullptr;
        check(trt_engine_open(&chosen, &opened));
        handle_.reset(opened);
    }
    trt_engine_info info() const {
        trt_engine_info found;
        found.struct_size = sizeof found;
        check(trt_engine_get_info(get(), &found));
        return found;
    }
    // A name, several, "random", or a path; see trt_voice_load.
    voice load_voice(const std::string &name, bool paths = false) const {
        trt_voice *made = nullptr;
        check(trt_voice_load(get(), name.c_str(), paths, &made));
        return voice(made);
    }
    voice voice_from_clips(const std::vector<trt_clip> &clips) const {
        trt_voice *made = nullptr;
        check(trt_voice_from_clips(get(), clips.data(), clips.size(), &made));
        return voice(made);
    }
    trt::audio synthesize(const trt_request &wanted) const {
        trt_audio made;
        check(trt_synthesize(get(), &wanted, &made));
        return trt::audio(made);
    }
    job submit(const trt_request &wanted) const {
        trt_job *made = nullptr;
        check(trt_submit(get(), &wanted, &made));
        return job(made);
    }
    trt::stream stream(const trt_request &wanted) const {
        trt_stream *made = nullptr;
        check(trt_stream_open(get(), &wanted, &made));
        return trt::stream(made);
    }
    // A stream whose text goes on by feed(), until finish().
    trt::stream live(const trt_request &wanted) const {
        trt_stream *made = nullptr;
        check(trt_stream_open_live(get(), &wanted, &made));
        return trt::stream(made);
    }
    // Say a text piece by piece to fn(const trt_chunk &), which may return false to stop. What it throws comes out here.
    template <class F>
    void speak(const trt_request &wanted, F &&fn) const {
        using function = std::remove_reference_t<F>;
        struct context { function *fn; std::exception_ptr thrown; } passed{std::addressof(fn), nullptr};
        const auto call = [](const trt_chunk *chunk, void *user) noexcept -> int {
            auto *own = static_cast<context *>(user);
            try {
                if constexpr (std::is_void_v<std::invoke_result_t<function &, const trt_chunk &>>)
                    (*own->fn)(*chunk);
                else
                    return static_cast<bool>((*own->fn)(*chunk));
            } catch (...) {
                own->thrown = std::current_exception();
                return 0;
            }
            return 1;
        };
        const int status = trt_speak(get(), &wanted, call, &passed);
        if (passed.thrown)
            std::rethrow_exception(passed.thrown);
        check(status);
    }
    trt_engine *get() const noexcept { return handle_.get(); }

private:
    detail::handle<trt_engine, trt_engine_close> handle_;
};

} // namespace trt
#endif
