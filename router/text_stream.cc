#include "router/text_stream.h"

#include <algorithm>
#include <cstdint>
#include <utility>

namespace bough::router {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

struct Character {
  size_t length = 1;     // bytes it takes, or that an invalid part takes
  bool valid = false;
  bool complete = true;  // false: the text ends within it
};

// The character at the front of `s`, which is not empty. Table 3-7 of the Unicode standard: the second
// byte's range depends on the first, later ones are 80..BF.
Character ReadCharacter(std::string_view s) {
  const auto byte = [s](size_t i) { return static_cast<uint8_t>(s[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return {1, true, true};
  if (lead < 0xC2 || lead > 0xF4) return {1, false, true};
  const size_t length = lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  uint8_t low = 0x80, high = 0xBF;
  if (lead == 0xE0) low = 0xA0;
  if (lead == 0xED) high = 0x9F;
  if (lead == 0xF0) low = 0x90;
  if (lead == 0xF4) high = 0x8F;
  for (size_t i = 1; i < length; ++i) {
    if (i == s.size()) return {i, false, false};
    if (byte(i) < low || byte(i) > high) return {i, false, true};
    low = 0x80, high = 0xBF;
  }
  return {length, true, true};
}

// Longest suffix of `text` that is a proper prefix of a stop string.
size_t HeldSuffix(std::string_view text, const std::vector<std::string>& stops) {
  size_t longest = 0;
  for (const std::string& stop : stops) {
    for (size_t n = std::min(text.size(), stop.size() - 1); n > longest; --n) {
      if (text.substr(text.size() - n) == std::string_view(stop).substr(0, n)) longest = n;
    }
  }
  return longest;
}

}  // namespace

std::string Utf8Assembler::Push(std::string_view bytes) {
  pending_.append(bytes);
  std::string out;
  size_t at = 0;
  while (at < pending_.size()) {
    const std::string_view rest = std::string_view(pending_).substr(at);
    const Character c = ReadCharacter(rest);
    if (!c.complete) break;
    out.append(c.valid ? rest.substr(0, c.length) : kReplacement);
    at += c.length;
  }
  pending_.erase(0, at);
  return out;
}

std::string Utf8Assembler::Flush() {
  if (std::exchange(pending_, {}).empty()) return {};
  return std::string(kReplacement);
}

TextStream::TextStream(std::shared_ptr<const std::vector<std::string>> stop_strings,
                       bool include_stop_string, bool strip_leading_space)
    : stop_strings_(std::move(stop_strings)),
      include_stop_string_(include_stop_string),
      strip_leading_space_(strip_leading_space) {}

std::string TextStream::Push(std::string_view piece_bytes) {
  if (stop_index_ >= 0) return {};
  if (strip_leading_space_ && !piece_bytes.empty()) {
    if (piece_bytes.front() == ' ') piece_bytes.remove_prefix(1);
    strip_leading_space_ = false;
  }
  return Release(utf8_.Push(piece_bytes), /*at_end=*/false);
}

std::string TextStream::Flush() {
  if (stop_index_ >= 0) return {};
  return Release(utf8_.Flush(), /*at_end=*/true);
}

std::string TextStream::Release(std::string text, bool at_end) {
  if (!held_.empty()) text.insert(0, std::exchange(held_, {}));
  size_t stop_begin = 0, stop_end = std::string::npos;
  for (size_t i = 0; i < stop_strings_->size(); ++i) {
    const std::string& stop = (*stop_strings_)[i];
    const size_t begin = text.find(stop);
    if (begin == std::string::npos) continue;
    const size_t end = begin + stop.size();
    if (end < stop_end || (end == stop_end && begin < stop_begin)) {
      stop_begin = begin, stop_end = end;
      stop_index_ = static_cast<int>(i);
    }
  }
  if (stop_index_ >= 0) {
    text.resize(include_stop_string_ ? stop_end : stop_begin);
    return text;
  }
  if (at_end) return text;
  const size_t keep = HeldSuffix(text, *stop_strings_);
  held_ = text.substr(text.size() - keep);
  text.resize(text.size() - keep);
  return text;
}

}  // namespace bough::router
