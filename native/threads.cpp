#include "threads.hpp"

#include <pthread.h>

#include <new>

namespace gemmule {

std::mutex renewing;

namespace {

// The number of forks between this process and the first one. Unlike a process id it is never that
// of another process: two containers' first processes are both number 1.
std::atomic<uint32_t> forks{0};

[[maybe_unused]] const int registered = pthread_atfork(nullptr, nullptr, [] {
  forks.fetch_add(1, std::memory_order_relaxed);
  new (&renewing) std::mutex;
});

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr int kSpins = 20000;  // tens of microseconds; then the core is offered to other programs

}  // namespace

Threads::Threads(int count) : forks_(forks.load(std::memory_order_relaxed)), ranges_(count) {}

Threads::~Threads() { stop(); }

bool Threads::forked() const { return forks_ != forks.load(std::memory_order_relaxed); }

void Threads::start() {
  stop_ = false;
  const uint32_t round = round_;  // read here: a thread that starts late must not miss a call
  const int count = this->count();
  try {
    workers_.reserve(count - 1);
    for (int i = 1; i < count; ++i) workers_.emplace_back([=, this] { worker_loop(i, round); });
  } catch (...) {
    stop();
    throw;
  }
}

void Threads::stop() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  woken_.notify_all();
  for (auto& worker : workers_) worker.join();
  workers_.clear();
}

void Threads::wake() {
  if (count() == 1) return;
  if (workers_.empty()) start();
  {
    std::lock_guard<std::mutex> lock(mutex_);
    awake_ = true;
  }
  woken_.notify_all();
}

void Threads::rest() { awake_ = false; }

// Works through the thread's own range, then through what is left of the others'.
void Threads::steal(int thread) {
  const int count = static_cast<int>(ranges_.size());
  for (int i = 0; i < count; ++i) {
    Range& range = ranges_[(thread + i) % count];
    for (;;) {
      const int64_t begin = range.next.fetch_add(grain_, std::memory_order_relaxed);
      if (begin >= range.end) break;
      try {
        call_(work_, thread, begin, begin + grain_ < range.end ? begin + grain_ : range.end);
      } catch (const std::bad_alloc&) {
        out_of_memory_ = true;
        return;
      }
    }
  }
}

void Threads::dispatch(int64_t items, int64_t grain) {
  const int64_t count = static_cast<int64_t>(ranges_.size());
  for (int64_t i = 0; i < count; ++i) {
    ranges_[i].next.store(items * i / count, std::memory_order_relaxed);
    ranges_[i].end = items * (i + 1) / count;
  }
  grain_ = grain;
  busy_.store(static_cast<int>(workers_.size()), std::memory_order_relaxed);
  round_.fetch_add(1, std::memory_order_release);
  steal(0);
  for (int spins = 0; busy_.load(std::memory_order_acquire) != 0; ++spins) {
    pause();
    if (spins > kSpins) std::this_thread::yield();
  }
  if (out_of_memory_.exchange(false)) throw std::bad_alloc();
}

void Threads::worker_loop(int thread, uint32_t seen) {
  for (;;) {
    int spins = 0;
    while (round_.load(std::memory_order_acquire) == seen) {
      if (stop_) return;
      if (!awake_) {
        std::unique_lock<std::mutex> lock(mutex_);
        woken_.wait(lock, [&] { return stop_ || awake_ || round_ != seen; });
        continue;
      }
      pause();
      if (++spins > kSpins) std::this_thread::yield();
    }
    ++seen;
    steal(thread);
    busy_.fetch_sub(1, std::memory_order_release);
  }
}

}  // namespace gemmule
