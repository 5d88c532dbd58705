// Speech from Rust, by the C interface alone.
//
//     rustc --edition 2021 hello.rs -L capi/lib -l tortoise_rt -C link-arg=-Wl,-rpath,capi/lib
//
// Only what is used is declared; the structs are those of tortoise_rt.h, field by field.
use std::ffi::{c_char, c_double, c_int, c_void, CStr, CString};
use std::ptr::{null, null_mut};

#[repr(C)]
struct Request {
    struct_size: usize,
    text: *const c_char,
    voice: *mut c_void,
    settings: *const c_void,
    seed: i64,
    priority: i64,
    timeout: c_double,
    split: i64,
    pause: c_double,
    chunk: i64,
    first_chunk: i64,
}

#[repr(C)]
struct Chunk {
    samples: *const f32,
    count: usize,
    sequence: i64,
    sentence: i64,
}

extern "C" {
    fn trt_last_error() -> *const c_char;
    fn trt_engine_open(options: *const c_void, engine: *mut *mut c_void) -> c_int;
    fn trt_engine_close(engine: *mut c_void) -> c_int;
    fn trt_request_init(request: *mut Request, struct_size: usize) -> c_int;
    fn trt_stream_open(engine: *mut c_void, request: *const Request, stream: *mut *mut c_void) -> c_int;
    fn trt_stream_next(stream: *mut c_void, seconds: c_double, chunk: *mut Chunk) -> c_int;
    fn trt_stream_close(stream: *mut c_void) -> c_int;
    fn trt_write_wav(path: *const c_char, samples: *const f32, count: usize) -> c_int;
}

const OK: c_int = 0;
const END: c_int = 2;

fn check(status: c_int) -> Result<c_int, String> {
    match status {
        0..=9 => Ok(status),
        _ => Err(unsafe { CStr::from_ptr(trt_last_error()) }.to_string_lossy().into_owned()),
    }
}

struct Engine(*mut c_void);

impl Engine {
    fn open() -> Result<Engine, String> {
        let mut engine = null_mut();
        check(unsafe { trt_engine_open(null(), &mut engine) })?;
        Ok(Engine(engine))
    }

    /// Say a text; `heard` gets its pieces while they are made.
    fn speak(&self, text: &str, seed: i64, mut heard: impl FnMut(&[f32])) -> Result<(), String> {
        let text = CString::new(text).map_err(|error| error.to_string())?;
        let mut request: Request = unsafe { std::mem::zeroed() };
        let mut stream = null_mut();
        let mut chunk: Chunk = unsafe { std::mem::zeroed() };
        unsafe {
            check(trt_request_init(&mut request, std::mem::size_of::<Request>()))?;
            request.text = text.as_ptr();
            request.seed = seed;
            check(trt_stream_open(self.0, &request, &mut stream))?;
            let result = loop {
                match check(trt_stream_next(stream, -1.0, &mut chunk)) {
                    Ok(OK) => heard(std::slice::from_raw_parts(chunk.samples, chunk.count)),
                    Ok(END) => break Ok(()),
                    Ok(_) => continue,
                    Err(message) => break Err(message),
                }
            };
            trt_stream_close(stream);
            result
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        unsafe { trt_engine_close(self.0) };
    }
}

fn main() -> Result<(), String> {
    let engine = Engine::open()?;
    let mut speech: Vec<f32> = Vec::new();
    engine.speak("Hello from a crab. And good bye.", 7, |piece| speech.extend_from_slice(piece))?;
    let path = CString::new("crab.wav").unwrap();
    check(unsafe { trt_write_wav(path.as_ptr(), speech.as_ptr(), speech.len()) })?;
    println!("{:.2} s of speech", speech.len() as f64 / 24000.0);
    Ok(())
}
