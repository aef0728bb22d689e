#include "client/format.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_format.h"

namespace bough::client {

std::string FormatSeconds(double seconds) {
  if (seconds < 9.95) return absl::StrFormat("%.1fs", std::max(seconds, 0.0));
  const int64_t whole = std::llround(seconds);
  if (whole < 60) return absl::StrFormat("%ds", whole);
  if (whole < 3600) return absl::StrFormat("%dm%02ds", whole / 60, whole % 60);
  return absl::StrFormat("%dh%02dm", whole / 3600, whole % 3600 / 60);
}

std::string FormatBytes(int64_t bytes) {
  if (bytes < 1000) return absl::StrFormat("%d B", bytes);
  const char* const units[] = {"kB", "MB", "GB", "TB"};
  double value = static_cast<double>(bytes) / 1000;
  int unit = 0;
  while (value >= 999.95 && unit < 3) {
    value /= 1000;
    ++unit;
  }
  return absl::StrFormat("%.1f %s", value, units[unit]);
}

std::string Bar(double fraction, int width) { return Bar(fraction, 0, width); }

std::string Bar(double first, double second, int width) {
  const auto cells = [width](double fraction) {
    return std::isnan(fraction) ? 0
                                : static_cast<int>(std::clamp(fraction, 0.0, 1.0) * width + 0.5);
  };
  const int until_first = cells(first);
  const int until_second = std::max(until_first, cells(first + second));
  return "[" + std::string(until_first, '#') + std::string(until_second - until_first, ':') +
         std::string(width - until_second, '.') + "]";
}

std::string Clip(const std::string& line, int columns) {
  std::string out;
  for (size_t i = 0; i < line.size(); ++i) {
    const unsigned char c = line[i];
    if (c == '\033') {
      const size_t end = line.find('m', i);
      if (end == std::string::npos) break;
      out.append(line, i, end - i + 1);
      i = end;
      continue;
    }
    const bool continues = (c & 0xc0) == 0x80;  // a later byte of a UTF-8 character
    if (!continues) --columns;
    if (columns >= 0) out += static_cast<char>(c);
  }
  return out;
}

}  // namespace bough::client
