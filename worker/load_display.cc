#include "worker/load_display.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "common/log.h"

namespace bough {
namespace {

constexpr int kBarWidth = 30;
constexpr absl::Duration kBarInterval = absl::Milliseconds(100);
constexpr absl::Duration kLineInterval = absl::Seconds(2);

int Percent(int64_t done, int64_t total) {
  return total <= 0 ? 0 : static_cast<int>(100.0 * std::min(done, total) / total);
}

}  // namespace

std::string ProgressBar(const std::string& group, const std::vector<RankProgress>& ranks,
                        absl::Duration elapsed) {
  int64_t done = 0, total = 0;
  for (const RankProgress& p : ranks) {
    done += p.bytes_done;
    total += p.bytes_total;
  }
  const int percent = Percent(done, total);
  const int filled = kBarWidth * percent / 100;
  std::string line =
      absl::StrFormat("loading %s  %d s  [%s%s] %3d%%", group, absl::ToInt64Seconds(elapsed),
                      std::string(filled, '#'), std::string(kBarWidth - filled, ' '), percent);
  for (const RankProgress& p : ranks) {
    absl::StrAppendFormat(&line, "  rank %d %3d%%", p.rank, Percent(p.bytes_done, p.bytes_total));
  }
  return line;
}

void LoadDisplay::Update(const RankProgress& progress, absl::Time now) {
  const auto it = std::lower_bound(
      ranks_.begin(), ranks_.end(), progress,
      [](const RankProgress& a, const RankProgress& b) { return a.rank < b.rank; });
  if (it != ranks_.end() && it->rank == progress.rank) {
    *it = progress;
  } else {
    ranks_.insert(it, progress);
  }
  if (now < next_) return;
  if (is_terminal_) {
    std::fprintf(stderr, "\r%s", ProgressBar(group_, ranks_, now - start_).c_str());
    std::fflush(stderr);
    bar_shown_ = true;
    next_ = now + kBarInterval;
    return;
  }
  for (const RankProgress& p : ranks_) {
    LogInfo("loading", {{"of_rank", p.rank},
                        {"phase", p.phase},
                        {"bytes_done", p.bytes_done},
                        {"bytes_total", p.bytes_total},
                        {"percent", Percent(p.bytes_done, p.bytes_total)}});
  }
  next_ = now + kLineInterval;
}

void LoadDisplay::End() {
  if (bar_shown_) std::fputc('\n', stderr);
  bar_shown_ = false;
}

}  // namespace bough
