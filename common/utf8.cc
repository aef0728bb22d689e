#include "common/utf8.h"

#include <cstdint>

namespace bough {

size_t Utf8CharBytes(std::string_view text) {
  if (text.empty()) return 0;
  const auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  const uint8_t lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t num_bytes = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
  if (lead < 0xC2 || lead > 0xF4 || text.size() < num_bytes) return 0;
  for (size_t i = 1; i < num_bytes; ++i) {
    if ((byte(i) & 0xC0) != 0x80) return 0;
  }
  // The leads whose second byte is restricted: overlong forms, surrogates, beyond U+10FFFF.
  if ((lead == 0xE0 && byte(1) < 0xA0) || (lead == 0xED && byte(1) >= 0xA0) ||
      (lead == 0xF0 && byte(1) < 0x90) || (lead == 0xF4 && byte(1) >= 0x90)) {
    return 0;
  }
  return num_bytes;
}

std::string ToValidUtf8(std::string_view text) {
  std::string valid;
  valid.reserve(text.size());
  while (!text.empty()) {
    const size_t num_bytes = Utf8CharBytes(text);
    if (num_bytes == 0) {
      valid += "\uFFFD";
      text.remove_prefix(1);
    } else {
      valid += text.substr(0, num_bytes);
      text.remove_prefix(num_bytes);
    }
  }
  return valid;
}

}  // namespace bough
