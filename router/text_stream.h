// One choice's tokens to text, as they come: only complete UTF-8 leaves, and nothing that may turn
// out to be the beginning of a stop string.
//
// How tokens are cut changes nothing: the concatenated output, and where it stops, depend only on
// the concatenated bytes. A stop string is found where its last character arrives first; of several
// that end there the one that begins first counts.
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace bough::router {

// ToValidUtf8 (common/utf8.h) in pieces: a byte that is part of no character becomes U+FFFD, an
// incomplete character waits.
class Utf8Assembler {
 public:
  std::string Push(std::string_view bytes);
  // What an end of the stream makes of the incomplete rest.
  std::string Flush();

 private:
  std::string pending_;  // at most 3 bytes: the beginning of a character
};

// Not thread-safe.
class TextStream {
 public:
  // `stop_strings` is shared by all choices of a request and outlives them by the pointer.
  TextStream(std::shared_ptr<const std::vector<std::string>> stop_strings, bool include_stop_string,
             bool strip_leading_space);

  // The bytes of one token (empty for control tokens). Returns the text that may leave now. After a
  // stop was found nothing leaves any more.
  std::string Push(std::string_view piece_bytes);
  // The stream is over without a stop string: what was held back. A stop string may still be found.
  std::string Flush();

  // Index of the stop string that was found; -1 = none yet.
  int stop_index() const { return stop_index_; }

 private:
  std::string Release(std::string text, bool at_end);

  std::shared_ptr<const std::vector<std::string>> stop_strings_;
  const bool include_stop_string_;
  bool strip_leading_space_;
  Utf8Assembler utf8_;
  std::string held_;  // a proper prefix of some stop string
  int stop_index_ = -1;
};

}  // namespace bough::router
