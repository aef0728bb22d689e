#include "common/flags.h"

#include <fstream>
#include <map>
#include <optional>

#include "absl/flags/reflection.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/strip.h"
#include "common/status_macros.h"

namespace bough {
namespace {

using FlagsByName = std::map<std::string, absl::CommandLineFlag*, std::less<>>;

FlagsByName FlagsOf(std::string_view defined_in) {
  FlagsByName flags;
  for (const auto& [name, flag] : absl::GetAllFlags()) {
    if (absl::EndsWith(flag->Filename(), {defined_in.data(), defined_in.size()})) {
      flags.emplace(std::string(name), flag);
    }
  }
  return flags;
}

std::string Dashed(std::string_view name) {
  return absl::StrReplaceAll({name.data(), name.size()}, {{"_", "-"}});
}

class Parser {
 public:
  explicit Parser(std::string_view defined_in) : flags_(FlagsOf(defined_in)) {}

  absl::Status Parse(const std::vector<std::string>& args, int depth = 0) {
    for (size_t i = 0; i < args.size(); ++i) {
      if (args[i] == "--") {
        line_.positional.insert(line_.positional.end(), args.begin() + i + 1, args.end());
        return absl::OkStatus();
      }
      if (!absl::StartsWith(args[i], "--")) {
        line_.positional.push_back(args[i]);
        continue;
      }
      RETURN_IF_ERROR(ParseFlag(args, &i, depth));
    }
    return absl::OkStatus();
  }

  CommandLine Take() { return std::move(line_); }

 private:
  absl::CommandLineFlag* Find(std::string_view name) const {
    const auto it = flags_.find(name);
    return it == flags_.end() ? nullptr : it->second;
  }

  // `args[*i]` starts with "--"; *i moves on when the value is the next argument.
  absl::Status ParseFlag(const std::vector<std::string>& args, size_t* i, int depth) {
    const std::string_view text = std::string_view(args[*i]).substr(2);
    const size_t equals = text.find('=');
    const std::string written(text.substr(0, equals));
    const std::string name = absl::StrReplaceAll(written, {{"-", "_"}});
    std::optional<std::string> value;
    if (equals != text.npos) value = text.substr(equals + 1);

    if (name == "help" && !value) {
      line_.help = true;
      return absl::OkStatus();
    }
    absl::CommandLineFlag* flag = Find(name);
    if (flag == nullptr && !value && absl::StartsWith(name, "no")) {
      flag = Find(name.substr(2));
      if (flag != nullptr && flag->IsOfType<bool>()) return Set(flag, written, "false");
      flag = nullptr;
    }
    if (flag == nullptr && name != "flagfile") {
      return absl::InvalidArgumentError(absl::StrCat("--", written, ": no such flag; see --help"));
    }
    if (!value && flag != nullptr && flag->IsOfType<bool>()) return Set(flag, written, "true");
    if (!value) {
      if (*i + 1 == args.size()) {
        return absl::InvalidArgumentError(absl::StrCat("--", written, ": needs a value"));
      }
      value = args[++*i];
    }
    return flag == nullptr ? ParseFile(*value, depth) : Set(flag, written, *value);
  }

  absl::Status Set(absl::CommandLineFlag* flag, const std::string& written,
                   std::string_view value) {
    std::string error;
    if (flag->ParseFrom({value.data(), value.size()}, &error)) return absl::OkStatus();
    // abseil's text repeats flag and value; what follows them is the reason, if there is one.
    const size_t reason = error.find("'; ");
    return absl::InvalidArgumentError(
        absl::StrCat("--", written, ": '", std::string(value), "' is not valid",
                     reason == error.npos ? "" : absl::StrCat(": ", error.substr(reason + 3))));
  }

  absl::Status ParseFile(const std::string& path, int depth) {
    std::ifstream file(path);
    if (!file) return absl::InvalidArgumentError(absl::StrCat("--flagfile: cannot read ", path));
    if (depth == 8) {
      return absl::InvalidArgumentError(absl::StrCat("--flagfile: nested too deep at ", path));
    }
    std::vector<std::string> args;
    for (std::string line; std::getline(file, line);) {
      const absl::string_view text = absl::StripAsciiWhitespace(line);
      if (!text.empty() && text[0] != '#') args.emplace_back(text);
    }
    return Parse(args, depth + 1);
  }

  const FlagsByName flags_;
  CommandLine line_;
};

}  // namespace

absl::StatusOr<CommandLine> ParseFlags(const std::vector<std::string>& args,
                                       std::string_view defined_in) {
  Parser parser(defined_in);
  RETURN_IF_ERROR(parser.Parse(args));
  return parser.Take();
}

std::string FlagsHelp(std::string_view usage, std::string_view defined_in) {
  std::string text = absl::StrCat(std::string(usage), "\n");
  for (const auto& [name, flag] : FlagsOf(defined_in)) {
    const std::string value = flag->DefaultValue();
    absl::StrAppend(&text, "\n  --", Dashed(name));
    if (!value.empty()) absl::StrAppend(&text, " (default ", value, ")");
    absl::StrAppend(&text, "\n      ", absl::StrReplaceAll(flag->Help(), {{"\n", "\n      "}}));
  }
  return absl::StrCat(text, "\n");
}

}  // namespace bough
