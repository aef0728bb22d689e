#include "client/flags.h"

#include <algorithm>
#include <numeric>

#include "absl/strings/str_format.h"
#include "absl/strings/str_replace.h"

namespace bough::client {
namespace {

std::string Canonical(std::string_view name) {
  return absl::StrReplaceAll(absl::string_view(name.data(), name.size()), {{"_", "-"}});
}

int EditDistance(std::string_view a, std::string_view b) {
  std::vector<int> row(b.size() + 1);
  std::iota(row.begin(), row.end(), 0);
  for (size_t i = 1; i <= a.size(); ++i) {
    int diagonal = row[0];
    row[0] = static_cast<int>(i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const int substitute = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({substitute, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row[b.size()];
}

}  // namespace

std::optional<std::string> Nearest(std::string_view word,
                                   const std::vector<std::string>& candidates) {
  std::optional<std::string> best;
  int best_distance = std::max<int>(1, static_cast<int>(word.size()) / 3) + 1;
  for (const std::string& candidate : candidates) {
    const int distance = EditDistance(word, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

int UsageError(const absl::Status& status, Io& io) {
  io.err << "error: " << std::string(status.message()) << "\n";
  return kExitUsage;
}

FlagSet::FlagSet(std::string command, std::string usage, std::string summary)
    : command_(std::move(command)), usage_(std::move(usage)), summary_(std::move(summary)) {}

void FlagSet::AddRaw(std::string name, std::string placeholder, std::string help, Setter set) {
  flags_.push_back({std::move(name), std::move(placeholder), std::move(help), std::move(set)});
}

const FlagSet::Flag* FlagSet::Find(std::string_view name) const {
  for (const Flag& flag : flags_) {
    if (flag.name == name) return &flag;
  }
  return nullptr;
}

absl::Status FlagSet::Unknown(std::string_view name) const {
  std::vector<std::string> names;
  for (const Flag& flag : flags_) names.push_back(flag.name);
  const std::optional<std::string> near = Nearest(name, names);
  return absl::InvalidArgumentError(
      absl::StrFormat("unknown flag --%s for '%s'; %s", name, command_,
                      near ? "did you mean --" + *near + "?" : "see '" + command_ + " --help'"));
}

absl::StatusOr<std::vector<std::string>> FlagSet::Parse(
    const std::vector<std::string>& args) const {
  std::vector<std::string> positional;
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string& arg = args[i];
    if (arg == "--") {
      positional.insert(positional.end(), args.begin() + i + 1, args.end());
      break;
    }
    if (arg.size() < 2 || arg[0] != '-') {  // "-" alone is stdin
      positional.push_back(arg);
      continue;
    }
    std::string_view body = std::string_view(arg).substr(arg[1] == '-' ? 2 : 1);
    const size_t equals = body.find('=');
    const std::string name = Canonical(body.substr(0, equals));
    std::optional<std::string> value;
    if (equals != std::string_view::npos) value = std::string(body.substr(equals + 1));

    const Flag* flag = Find(name);
    if (flag == nullptr && !value && name.starts_with("no")) {
      flag = Find(name.substr(name.starts_with("no-") ? 3 : 2));
      if (flag != nullptr && flag->placeholder.empty()) value = "false";
      if (!value) flag = nullptr;
    }
    if (flag == nullptr) return Unknown(name);
    if (!value && flag->placeholder.empty()) value = "true";
    if (!value) {
      if (i + 1 == args.size()) {
        return absl::InvalidArgumentError(
            absl::StrFormat("--%s needs a value (%s)", flag->name, flag->placeholder));
      }
      value = args[++i];
    }
    if (absl::Status set = flag->set(*value); !set.ok()) {
      return absl::InvalidArgumentError(
          absl::StrFormat("--%s=%s is not a valid %s%s%s", flag->name, *value,
                          flag->placeholder.empty() ? "boolean" : flag->placeholder,
                          set.message().empty() ? "" : ": ", std::string(set.message())));
    }
  }
  return positional;
}

bool FlagSet::WantsHelp(const std::vector<std::string>& args) {
  const auto end = std::find(args.begin(), args.end(), "--");
  return std::any_of(args.begin(), end,
                     [](const std::string& arg) { return arg == "--help" || arg == "-h"; });
}

std::string FlagSet::Help() const {
  std::string out = absl::StrFormat("usage: %s [flags]%s%s\n%s\n\nflags:\n", command_,
                                    usage_.empty() ? "" : " ", usage_, summary_);
  for (const Flag& flag : flags_) {
    std::string left = "--" + flag.name;
    if (!flag.placeholder.empty()) left += " " + flag.placeholder;
    absl::StrAppendFormat(&out, "  %-28s %s\n", left, flag.help);
  }
  return out;
}

}  // namespace bough::client
