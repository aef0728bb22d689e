// The flags of one sub-command. Values parse as abseil's do (absl::ParseFlag), but each command has
// its own set: abseil's registry is one per process.
//
//   --name=value   --name value   --bool   --nobool   -- (the rest is positional)
//
// Dashes and underscores in names are the same.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/flags/marshalling.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "client/io.h"

namespace bough::client {

class FlagSet {
 public:
  using Setter = std::function<absl::Status(std::string_view value)>;

  // `command` is named in errors and help; `usage` follows it on help's first line.
  FlagSet(std::string command, std::string usage, std::string summary);

  // `placeholder` stands for the value in help: "N", "FILE", ... A flag given twice sets twice.
  void AddRaw(std::string name, std::string placeholder, std::string help, Setter set);

  // Calls `set` with the parsed value.
  template <typename T>
  void On(std::string name, std::string placeholder, std::string help, std::function<void(T)> set) {
    const bool is_bool = std::is_same_v<T, bool>;
    AddRaw(std::move(name), is_bool ? "" : std::move(placeholder), std::move(help),
           [set = std::move(set)](std::string_view text) -> absl::Status {
             T value;
             std::string error;
             if (!ParseValue(absl::string_view(text.data(), text.size()), &value, &error)) {
               return absl::InvalidArgumentError(error);
             }
             set(std::move(value));
             return absl::OkStatus();
           });
  }

  // Stores into *value, whose present content is the default shown in help. REQUIRES: *value
  // outlives Parse.
  template <typename T>
  void Add(std::string name, std::string placeholder, std::string help, T* value) {
    const std::string shown = ShowValue(*value);
    if (!shown.empty() && !std::is_same_v<T, bool>) absl::StrAppend(&help, " (", shown, ")");
    On<T>(std::move(name), std::move(placeholder), std::move(help),
          [value](T parsed) { *value = std::move(parsed); });
  }

  // Positional arguments in order. INVALID_ARGUMENT, one line with a hint, for a bad flag or value.
  absl::StatusOr<std::vector<std::string>> Parse(const std::vector<std::string>& args) const;

  // True when --help or -h stands before any "--".
  static bool WantsHelp(const std::vector<std::string>& args);
  std::string Help() const;

 private:
  struct Flag {
    std::string name, placeholder, help;  // no placeholder = a bool
    Setter set;
  };
  template <typename T>
  static bool ParseValue(absl::string_view text, T* value, std::string* error) {
    return absl::ParseFlag(text, value, error);
  }
  static bool ParseValue(absl::string_view text, absl::Duration* value, std::string* error) {
    return AbslParseFlag(text, value, error);
  }
  template <typename T>
  static std::string ShowValue(const T& value) {
    return absl::UnparseFlag(value);
  }
  static std::string ShowValue(absl::Duration value) {
    return value == absl::InfiniteDuration() ? "none" : absl::FormatDuration(value);
  }
  const Flag* Find(std::string_view name) const;
  absl::Status Unknown(std::string_view name) const;

  std::string command_, usage_, summary_;
  std::vector<Flag> flags_;
};

// Writes "error: ..." and returns the exit code of a wrong command line.
int UsageError(const absl::Status& status, Io& io);

// The candidate with the smallest edit distance to `word`; nullopt when none is near enough to be a
// likely slip of the keyboard.
std::optional<std::string> Nearest(std::string_view word,
                                   const std::vector<std::string>& candidates);

}  // namespace bough::client
