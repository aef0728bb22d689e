// Reads the fields of a JSON object that came from outside. Errors are one line: where, field, limit
// and value.
#pragma once

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "nlohmann/json.hpp"

namespace bough {

// Reads fields until the first bad one; afterwards everything is a no-op and status() is its error.
// `path` says where the object is from. Both outlive the reader.
class FieldReader {
 public:
  using Json = nlohmann::json;

  FieldReader(const Json& json, const std::string& path) : json_(json), path_(path) {}

  absl::Status status() const { return status_; }

  void Fail(const std::string& field, const std::string& what) {
    if (status_.ok()) {
      status_ = absl::InvalidArgumentError(absl::StrCat(path_, ": ", field, ": ", what));
    }
  }

  // Absent and null are the same: Hugging Face writes null for "not set".
  bool Has(const std::string& field) const {
    return json_.contains(field) && !json_[field].is_null();
  }

  int Int(const std::string& field, int64_t low, int64_t high) {
    if (!Has(field)) return Fail(field, "is missing"), 0;
    const Json& value = json_[field];
    const int64_t number = value.is_number_integer() ? value.get<int64_t>() : low - 1;
    if (number < low || number > high) {
      Fail(field, absl::StrCat("must be an integer in [", low, ", ", high, "], is ", Text(value)));
      return 0;
    }
    return static_cast<int>(number);
  }
  int Int(const std::string& field, int64_t low, int64_t high, int if_absent) {
    return Has(field) ? Int(field, low, high) : if_absent;
  }

  float Positive(const std::string& field) {
    if (!Has(field)) return Fail(field, "is missing"), 0.0f;
    const Json& value = json_[field];
    const float number = value.is_number() ? value.get<float>() : 0;
    if (!(number > 0 && number <= std::numeric_limits<float>::max())) {
      Fail(field, absl::StrCat("must be a positive number, is ", Text(value)));
    }
    return number;
  }
  float Positive(const std::string& field, float if_absent) {
    return Has(field) ? Positive(field) : if_absent;
  }

  bool Bool(const std::string& field) {
    if (!Has(field)) return false;
    if (!json_[field].is_boolean()) {
      return Fail(field, absl::StrCat("must be a bool, is ", Text(json_[field]))), false;
    }
    return json_[field].get<bool>();
  }

  // The field may be absent, or have this value.
  void Only(const std::string& field, const Json& served) {
    if (Has(field) && json_[field] != served) {
      Fail(field, absl::StrCat(Text(json_[field]), " is not served (only ", Text(served), ")"));
    }
  }

  // The field must be there, with one of these values.
  std::string OneOf(const std::string& field, const std::vector<std::string>& served) {
    if (!Has(field)) return Fail(field, "is missing"), "";
    for (const std::string& value : served) {
      if (json_[field] == value) return value;
    }
    Fail(field, absl::StrCat(Text(json_[field]), " is not served (only ",
                             absl::StrJoin(served, ", "), ")"));
    return "";
  }

  // A value as one short line.
  static std::string Text(const Json& value) {
    std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
    if (text.size() > 80) text = text.substr(0, 77) + "...";
    return text;
  }

 private:
  const Json& json_;
  const std::string& path_;
  absl::Status status_;
};

}  // namespace bough
