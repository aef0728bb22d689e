#include "kernels/cpu/parallel.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#include "common/check.h"

namespace bough::cpu {
namespace {

struct Job {
  int num_tasks, grain;  // a thread claims `grain` tasks at a time
  void (*run)(const void*, int, int);
  const void* context;
  std::atomic<int> next = 0;

  void Work() {
    for (int begin; (begin = next.fetch_add(grain)) < num_tasks;) {
      run(context, begin, std::min(begin + grain, num_tasks));
    }
  }
};

// How often a thread yields its core before it sleeps: some 20 us, longer than the gap between a
// model's kernels. Sleeping and waking costs about as much.
constexpr int kYields = 40;

template <typename Condition>
void YieldUntil(Condition condition) {
  for (int i = 0; i < kYields && !condition(); ++i) std::this_thread::yield();
}

class Pool {
 public:
  explicit Pool(int num_threads) { Start(num_threads); }

  void Resize(int num_threads) {
    const std::lock_guard<std::mutex> caller(caller_mutex_);
    Stop();
    Start(num_threads);
  }

  int num_threads() const { return num_threads_; }

  void Run(Job& job) {
    const std::unique_lock<std::mutex> caller(caller_mutex_, std::try_to_lock);
    if (!caller) return job.Work();
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      job_ = &job;
      ++generation_;
    }
    wake_.notify_all();
    job.Work();
    const auto is_idle = [this] { return num_working_ == 0; };
    YieldUntil(is_idle);
    std::unique_lock<std::mutex> lock(mutex_);
    job_ = nullptr;  // who comes late finds nothing to join
    idle_.wait(lock, is_idle);
  }

 private:
  void Start(int num_threads) {
    num_threads_ = num_threads;
    stopping_ = false;
    for (int i = 1; i < num_threads; ++i) helpers_.emplace_back([this] { Help(); });
  }

  void Stop() {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
      ++generation_;
    }
    wake_.notify_all();
    for (std::thread& helper : helpers_) helper.join();
    helpers_.clear();
  }

  void Help() {
    for (uint64_t seen = 0;;) {
      const auto has_news = [&] { return generation_ != seen; };
      YieldUntil(has_news);
      std::unique_lock<std::mutex> lock(mutex_);
      wake_.wait(lock, has_news);
      seen = generation_;
      if (stopping_) return;
      Job* job = job_;
      if (job == nullptr) continue;
      ++num_working_;
      lock.unlock();
      job->Work();
      lock.lock();
      if (--num_working_ == 0) idle_.notify_one();
    }
  }

  std::mutex caller_mutex_;  // held by the one thread whose loop the helpers serve
  std::vector<std::thread> helpers_;
  std::atomic<int> num_threads_ = 1;

  std::mutex mutex_;  // guards what follows; the atomics may be read without it
  std::condition_variable wake_, idle_;
  std::atomic<uint64_t> generation_ = 0;  // counts jobs and stops
  Job* job_ = nullptr;
  std::atomic<int> num_working_ = 0;  // helpers inside job_
  bool stopping_ = false;
};

// Never destroyed: helpers may outlive main's statics.
Pool& ThePool() {
  static Pool* pool = new Pool(std::max(1, static_cast<int>(std::thread::hardware_concurrency())));
  return *pool;
}

}  // namespace

void SetNumThreads(int num_threads) {
  CHECK_GE(num_threads, 1);
  ThePool().Resize(num_threads);
}

int NumThreads() { return ThePool().num_threads(); }

void RunOnThreads(int num_tasks, void (*run)(const void*, int, int), const void* context) {
  // 8 claims per thread even out threads of unequal speed.
  Job job{.num_tasks = num_tasks,
          .grain = std::max(1, num_tasks / (8 * NumThreads())),
          .run = run,
          .context = context};
  ThePool().Run(job);
}

}  // namespace bough::cpu
