// A pool of threads that work through numbered items together and spin between calls.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace gemmule {

class Threads {
 public:
  explicit Threads(int count);
  ~Threads();

  int count() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls work(thread, begin, end) on parts of [0, items) of at most `grain` items, in all threads.
  template <class Work>
  void run(int64_t items, int64_t grain, const Work& work) {
    if (items <= 0) return;
    if (workers_.empty() || items <= grain) {
      for (int64_t at = 0; at < items; at += grain)
        work(0, at, at + grain < items ? at + grain : items);
      return;
    }
    call_ = [](const void* w, int thread, int64_t begin, int64_t end) {
      (*static_cast<const Work*>(w))(thread, begin, end);
    };
    work_ = &work;
    dispatch(items, grain);
  }

  // Between wake and rest the workers spin while they wait for work.
  void wake();
  void rest();

 private:
  void dispatch(int64_t items, int64_t grain);
  void steal(int thread);
  void worker_loop(int thread);

  // The items that one thread starts with, consecutive so that prefetching helps. A thread that has
  // finished its own range steals from those of the others.
  struct alignas(64) Range {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  std::vector<std::thread> workers_;
  std::vector<Range> ranges_;
  void (*call_)(const void*, int, int64_t, int64_t) = nullptr;
  const void* work_ = nullptr;
  int64_t grain_ = 1;
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) std::atomic<int> busy_{0};
  std::atomic<bool> awake_{false}, stop_{false};
  std::mutex mutex_;
  std::condition_variable woken_;
};

}  // namespace gemmule
