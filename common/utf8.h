// UTF-8 as SentencePiece reads it: shortest forms of the code points up to U+10FFFF without
// surrogates; any other byte stands for itself alone.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace bough {

// Bytes of the character that `text` begins with; 0 when it begins with none (empty, malformed or
// cut).
size_t Utf8CharBytes(std::string_view text);

// `text` with every byte that is part of no character replaced by U+FFFD.
std::string ToValidUtf8(std::string_view text);

}  // namespace bough
