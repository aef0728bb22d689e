#include "router/text_stream.h"

#include <algorithm>
#include <cstdint>
#include <utility>

#include "common/utf8.h"

namespace bough::router {
namespace {

constexpr std::string_view kReplacement = "\xEF\xBF\xBD";  // U+FFFD

enum class Front { kCharacter, kCut, kInvalid };

// What the non-empty `s` begins with: a character of `*length` bytes, the beginning of one that is
// cut by the end, or a byte that is part of none. Table 3-7 of the Unicode standard: the second
// byte's range depends on the first, later ones are 80..BF.
Front ReadFront(std::string_view s, size_t* length) {
  const auto byte = [s](size_t i) { return static_cast<uint8_t>(s[i]); };
  const uint8_t lead = byte(0);
  *length = lead < 0x80 ? 1 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : 4;
  if (*length > 1 && (lead < 0xC2 || lead > 0xF4)) return Front::kInvalid;
  uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (size_t i = 1; i < *length; ++i) {
    if (i == s.size()) return Front::kCut;
    if (byte(i) < low || byte(i) > high) return Front::kInvalid;
    low = 0x80, high = 0xBF;
  }
  return Front::kCharacter;
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
  size_t at = 0, length = 0;
  while (at < pending_.size()) {
    const std::string_view rest = std::string_view(pending_).substr(at);
    const Front front = ReadFront(rest, &length);
    if (front == Front::kCut) break;
    if (front == Front::kInvalid) length = 1;
    out.append(front == Front::kInvalid ? kReplacement : rest.substr(0, length));
    at += length;
  }
  pending_.erase(0, at);
  return out;
}

std::string Utf8Assembler::Flush() { return ToValidUtf8(std::exchange(pending_, {})); }

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
