// Numbers as people read them.
#pragma once

#include <cstdint>
#include <string>

namespace bough::client {

// "0.4s", "12s", "3m05s", "2h07m".
std::string FormatSeconds(double seconds);

// "812 B", "40.2 MB", "1.3 GB" (powers of 1000).
std::string FormatBytes(int64_t bytes);

// "[#####.....]": `fraction` of `width` cells; clamped to [0, 1].
std::string Bar(double fraction, int width);

// `fraction` of a first kind ('#'), then of a second (':'): "[###::....]".
std::string Bar(double first, double second, int width);

// `line` cut to `columns` visible characters; terminal escapes take none and are kept.
std::string Clip(const std::string& line, int columns);

}  // namespace bough::client
