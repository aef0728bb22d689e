#include "client/top_frame.h"

#include <algorithm>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "client/format.h"

namespace bough::client {
namespace {

constexpr int kLoadBarWidth = 30;
// All columns of a group's line but its name and the KV bar.
constexpr int kFixedWidth = 70;

std::string Paint(const std::string& text, const char* escape, bool color) {
  return color ? absl::StrCat("\033[", escape, "m", text, "\033[0m") : text;
}

std::string StateName(v1::GroupState state) {
  const std::string name = v1::GroupState_Name(state);
  return absl::AsciiStrToLower(name.substr(name.find("STATE_") + 6));
}

const char* StateColor(v1::GroupState state) {
  switch (state) {
    case v1::GROUP_STATE_READY:
      return "32";  // green
    case v1::GROUP_STATE_CONNECTING:
      return "31";  // red
    default:
      return "33";  // yellow
  }
}

std::string Layout(const v1::Group& group) {
  return absl::StrFormat("tp%d ep%d %s", group.tp_size(), group.ep_size(), group.device());
}

std::string Percent(int64_t part, int64_t whole) {
  return whole == 0 ? "-" : absl::StrFormat("%.1f", 100.0 * part / whole);
}

// Tokens that `group` has made since `before`, nullopt when it is not known then (or has
// restarted).
std::optional<double> TokenRate(const v1::Group& group, double now,
                                const std::optional<Snapshot>& before) {
  if (!before || now <= before->seconds) return std::nullopt;
  for (const v1::Group& old : before->groups.groups()) {
    if (old.name() != group.name() || old.generated_tokens() > group.generated_tokens()) continue;
    return static_cast<double>(group.generated_tokens() - old.generated_tokens()) /
           (now - before->seconds);
  }
  return std::nullopt;
}

std::string Rate(const std::optional<double>& rate) {
  return rate ? absl::StrFormat("%.1f", *rate) : "-";
}

// Blocks that running sequences read, then those that are only cached.
std::string KvBar(const v1::Group& group, int width) {
  const double total = std::max(1, group.total_blocks());
  const int used = std::max(0, group.total_blocks() - group.free_blocks() - group.cached_blocks());
  return absl::StrFormat("%s%4.0f%%", Bar(used / total, group.cached_blocks() / total, width),
                         100 * used / total);
}

bool Loading(const v1::GroupProgress& group) {
  return std::any_of(group.ranks().begin(), group.ranks().end(),
                     [](const v1::RankProgress& rank) { return rank.phase() != "ready"; });
}

// What a group that is not ready is at: its weights when it reads them, else its state and why.
std::string NotReady(const v1::Group& group, const v1::GetLoadProgressResponse& progress) {
  for (const v1::GroupProgress& load : progress.groups()) {
    if (load.group() != group.name() || group.state() != v1::GROUP_STATE_LOADING) continue;
    double done = 0, total = 0;
    for (const v1::RankProgress& rank : load.ranks()) {
      done += static_cast<double>(rank.bytes_done());
      total += static_cast<double>(rank.bytes_total());
    }
    if (total == 0) break;
    return absl::StrFormat("%s %3.0f%% of weights", Bar(done / total, 20), 100 * done / total);
  }
  const std::string why = group.last_error().empty() ? "" : ": " + group.last_error();
  return StateName(group.state()) + why;
}

void AddTo(v1::Group* total, const v1::Group& group) {
  total->set_requests_running(total->requests_running() + group.requests_running());
  total->set_requests_waiting(total->requests_waiting() + group.requests_waiting());
  total->set_cached_blocks(total->cached_blocks() + group.cached_blocks());
  total->set_prompt_tokens(total->prompt_tokens() + group.prompt_tokens());
  total->set_cached_prompt_tokens(total->cached_prompt_tokens() + group.cached_prompt_tokens());
}

std::string Header(const Snapshot& now, bool color) {
  const std::string model = now.info.model().empty() ? "no model yet" : now.info.model();
  return absl::StrFormat("%s %s  %s  %d/%d groups ready  %d requests in flight  up %s%s\n",
                         Paint("bough", "1", color), now.info.version(), model,
                         now.info.ready_groups(), now.groups.groups_size(),
                         now.info.requests_in_flight(), FormatSeconds(now.info.uptime_seconds()),
                         now.info.draining() ? "  " + Paint("draining", "33", color) : "");
}

}  // namespace

bool AllReady(const v1::ListGroupsResponse& groups) {
  return groups.groups_size() > 0 &&
         std::all_of(groups.groups().begin(), groups.groups().end(),
                     [](const v1::Group& group) { return group.state() == v1::GROUP_STATE_READY; });
}

std::string LoadLines(const v1::GetLoadProgressResponse& progress) {
  std::string lines;
  for (const v1::GroupProgress& group : progress.groups()) {
    if (!Loading(group)) continue;
    for (const v1::RankProgress& rank : group.ranks()) {
      const double fraction = rank.phase() == "ready"  ? 1.0
                              : rank.bytes_total() > 0 ? static_cast<double>(rank.bytes_done()) /
                                                             static_cast<double>(rank.bytes_total())
                                                       : 0.0;
      absl::StrAppendFormat(&lines, "%s rank %d  %s %3.0f%% %s %s / %s\n", group.group(),
                            rank.rank(), Bar(fraction, kLoadBarWidth), 100 * fraction, rank.phase(),
                            FormatBytes(rank.bytes_done()), FormatBytes(rank.bytes_total()));
    }
  }
  return lines;
}

std::string ReadyLine(const Snapshot& now) {
  std::string line =
      absl::StrFormat("%d/%d groups ready", now.info.ready_groups(), now.groups.groups_size());
  for (const v1::Group& group : now.groups.groups()) {
    if (group.state() == v1::GROUP_STATE_READY) continue;
    absl::StrAppend(&line, "  ", group.name(), " ", NotReady(group, now.progress));
  }
  return line;
}

std::string TopFrame(const Snapshot& now, const std::optional<Snapshot>& before, FrameStyle style) {
  int name_width = 5;
  for (const v1::Group& group : now.groups.groups()) {
    name_width = std::max(name_width, static_cast<int>(group.name().size()));
  }
  const int bar_width = std::clamp(style.columns - name_width - kFixedWidth, 5, 40);
  const int kv_width = bar_width + 7;
  std::string frame = Header(now, style.color) + "\n";
  const std::string heading = absl::StrFormat("%-*s %-10s %-11s %4s %4s  %-*s %6s %5s %7s %6s",
                                              name_width, "GROUP", "STATE", "LAYOUT", "RUN", "WAIT",
                                              kv_width, "KV", "CACHED", "HIT%", "TOK/S", "DRAIN");
  frame += Paint(heading, "7", style.color) + "\n";

  v1::Group total;
  std::optional<double> total_rate;
  std::string errors;
  for (const v1::Group& group : now.groups.groups()) {
    const std::optional<double> rate = TokenRate(group, now.seconds, before);
    if (rate) total_rate = total_rate.value_or(0) + *rate;
    AddTo(&total, group);
    const std::string state = absl::StrFormat("%-10s", StateName(group.state()));
    absl::StrAppendFormat(&frame, "%-*s %s %-11s %4d %4d  %s %6d %5s %7s %6s\n", name_width,
                          group.name(), Paint(state, StateColor(group.state()), style.color),
                          Layout(group), group.requests_running(), group.requests_waiting(),
                          KvBar(group, bar_width), group.cached_blocks(),
                          Percent(group.cached_prompt_tokens(), group.prompt_tokens()), Rate(rate),
                          FormatSeconds(group.drain_seconds()));
    if (!group.last_error().empty()) {
      absl::StrAppend(&errors, group.name(), " (", group.address(), "): ", group.last_error(),
                      "\n");
    }
  }
  absl::StrAppendFormat(&frame, "%-*s %-10s %-11s %4d %4d  %-*s %6d %5s %7s\n", name_width, "total",
                        "", "", total.requests_running(), total.requests_waiting(), kv_width,
                        "# in use  : cached", total.cached_blocks(),
                        Percent(total.cached_prompt_tokens(), total.prompt_tokens()),
                        Rate(total_rate));
  if (const std::string loading = LoadLines(now.progress); !loading.empty()) {
    absl::StrAppend(&frame, "\n", loading);
  }
  if (!errors.empty()) absl::StrAppend(&frame, "\n", Paint(errors, "31", style.color));
  return frame;
}

}  // namespace bough::client
