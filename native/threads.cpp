#include "threads.hpp"

#include <pthread.h>

#include <algorithm>
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

bool is_awake(uint32_t epoch) { return epoch % 2 == 1; }

// How long a thread spins before it sleeps follows how its waits end. If the others have a core each,
// spinning is all there is; if another program is busy, waits fail, and spinning takes the core that
// the others, or a server's thread, are waiting for.
constexpr int kFewestSpins = 500;   // about ten microseconds
constexpr int kMostSpins = 20000;   // some hundred microseconds

int after_success(int spins) { return std::min(spins + 64, kMostSpins); }
int after_failure(int spins) { return std::max(spins / 2, kFewestSpins); }

}  // namespace

Threads::Threads(int count)
    : forks_(forks.load(std::memory_order_relaxed)), ranges_(count), spins_(kMostSpins) {}

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
    ++epoch_;
  }
  woken_.notify_all();
}

void Threads::rest() {
  if (is_awake(epoch_)) ++epoch_;
}

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
  round_.fetch_add(1);  // in one order with asleep_: either a worker sees it, or it is seen asleep
  if (asleep_.load() != 0) {
    { std::lock_guard<std::mutex> lock(mutex_); }
    woken_.notify_all();
  }
  steal(0);
  wait_for_workers();
  if (out_of_memory_.exchange(false)) throw std::bad_alloc();
}

void Threads::wait_for_workers() {
  for (int spins = 0; spins < spins_; ++spins) {
    if (busy_.load(std::memory_order_acquire) == 0) {
      spins_ = after_success(spins_);
      return;
    }
    pause();
  }
  spins_ = after_failure(spins_);
  std::unique_lock<std::mutex> lock(mutex_);
  caller_asleep_ = true;
  done_.wait(lock, [&] { return busy_.load() == 0; });
  caller_asleep_ = false;
}

void Threads::worker_loop(int thread, uint32_t seen) {
  int most = kMostSpins;
  for (;;) {
    for (int spins = 0; round_.load(std::memory_order_acquire) == seen; ++spins) {
      if (stop_) return;
      const uint32_t epoch = epoch_;
      if (is_awake(epoch)) {
        if (spins < most) {
          pause();
          continue;
        }
        most = after_failure(most);
      }
      std::unique_lock<std::mutex> lock(mutex_);
      ++asleep_;
      woken_.wait(lock, [&] {
        return stop_ || round_ != seen || (epoch_ != epoch && is_awake(epoch_));
      });
      --asleep_;
      spins = 0;
    }
    ++seen;
    most = after_success(most);
    steal(thread);
    if (busy_.fetch_sub(1) == 1 && caller_asleep_) {
      { std::lock_guard<std::mutex> lock(mutex_); }
      done_.notify_one();
    }
  }
}

}  // namespace gemmule
