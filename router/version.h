#pragma once

namespace bough::router {

// Of this binary; the project's version in the top CMakeLists.txt.
inline constexpr const char* kVersion = BOUGH_VERSION;

}  // namespace bough::router
