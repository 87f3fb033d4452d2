// A pool of threads that work through numbered items together.
//
// A thread that waits spins, for as long as waits last when each has a core of its own. After that
// another program has taken a core: the thread sleeps, and leaves its own to the one it waits for.
//
// They are started by the first call of `wake`. In a fork of the process they do not exist, and the
// fork may have come in the middle of a call: there the pool must be made again, see `forked`.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace gemmule {

// Held while a pool is made again after a fork; free at the start of every process.
extern std::mutex renewing;

class Threads {
 public:
  explicit Threads(int count);
  ~Threads();

  int count() const { return static_cast<int>(ranges_.size()); }

  // Whether this process is a fork of the one that made the pool. Such a pool can neither be used
  // nor destroyed: its threads cannot be joined, and its mutex may be locked for good.
  bool forked() const;

  // Calls work(thread, begin, end) on parts of [0, items) of at most `grain` items, in all threads.
  // Throws std::bad_alloc if it did in any of them, when all have ended.
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

  // Between wake and rest the workers spin for a while before they sleep. Throws std::system_error if
  // they cannot be started.
  void wake();
  void rest();

 private:
  void start();
  void stop();
  void dispatch(int64_t items, int64_t grain);
  void steal(int thread);
  void wait_for_workers();
  void worker_loop(int thread, uint32_t seen);

  // The items that one thread starts with, consecutive so that prefetching helps. A thread that has
  // finished its own range steals from those of the others.
  struct alignas(64) Range {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  const uint32_t forks_;  // how often the process had been forked when the pool was made
  std::vector<std::thread> workers_;
  std::vector<Range> ranges_;
  void (*call_)(const void*, int, int64_t, int64_t) = nullptr;
  const void* work_ = nullptr;
  int64_t grain_ = 1;
  alignas(64) std::atomic<uint32_t> round_{0};
  alignas(64) std::atomic<int> busy_{0};
  std::atomic<uint32_t> epoch_{0};  // counts calls of wake and rest: odd in between
  std::atomic<int> asleep_{0};  // workers
  std::atomic<bool> stop_{false}, out_of_memory_{false};
  std::atomic<bool> caller_asleep_{false};
  int spins_;  // how long the caller spins
  std::mutex mutex_;
  std::condition_variable woken_, done_;
};

}  // namespace gemmule
