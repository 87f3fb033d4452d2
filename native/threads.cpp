#include "threads.hpp"

namespace gemmule {
namespace {

inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

constexpr int kSpins = 20000;  // tens of microseconds; then the core is offered to other programs

}  // namespace

Threads::Threads(int count) : ranges_(count) {
  for (int i = 1; i < count; ++i) workers_.emplace_back([this, i] { worker_loop(i); });
}

Threads::~Threads() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  woken_.notify_all();
  for (auto& worker : workers_) worker.join();
}

void Threads::wake() {
  if (workers_.empty()) return;
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
      call_(work_, thread, begin, begin + grain_ < range.end ? begin + grain_ : range.end);
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
}

void Threads::worker_loop(int thread) {
  uint32_t seen = 0;
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
