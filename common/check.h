// CHECK macros for our own invariants, with the names and meaning of abseil's (Debian 12 ships an
// abseil without absl/log). A failed check prints file, line, condition and values, and aborts.
//
//   CHECK(p != nullptr) << "why";      CHECK_EQ(a, b);      CHECK_OK(status);
#pragma once

#include <cstdio>
#include <cstdlib>
#include <sstream>
#include <string>

namespace bough::internal {

class CheckFailure {
 public:
  CheckFailure(const char* file, int line, const std::string& what) {
    stream_ << file << ":" << line << ": CHECK failed: " << what << " ";
  }
  [[noreturn]] ~CheckFailure() {
    std::fprintf(stderr, "%s\n", stream_.str().c_str());
    std::fflush(stderr);
    std::abort();
  }
  std::ostream& stream() { return stream_; }

 private:
  std::ostringstream stream_;
};

// Gives the conditional expression in CHECK the type void, so that << binds tighter than ?:.
struct Voidify {
  void operator&(std::ostream&) {}
};

template <typename A, typename B>
std::string CompareText(const char* text, const A& a, const B& b) {
  std::ostringstream out;
  out << text << " (" << a << " vs. " << b << ")";
  return out.str();
}

}  // namespace bough::internal

#define CHECK(condition)              \
  (condition) ? (void)0               \
              : ::bough::internal::Voidify() & \
                    ::bough::internal::CheckFailure(__FILE__, __LINE__, #condition).stream()

#define BOUGH_CHECK_OP(a, op, b)                                                      \
  while (!((a)op(b)))                                                                 \
  ::bough::internal::CheckFailure(__FILE__, __LINE__,                                 \
                                  ::bough::internal::CompareText(#a " " #op " " #b, a, b)) \
      .stream()

#define CHECK_EQ(a, b) BOUGH_CHECK_OP(a, ==, b)
#define CHECK_NE(a, b) BOUGH_CHECK_OP(a, !=, b)
#define CHECK_LT(a, b) BOUGH_CHECK_OP(a, <, b)
#define CHECK_LE(a, b) BOUGH_CHECK_OP(a, <=, b)
#define CHECK_GT(a, b) BOUGH_CHECK_OP(a, >, b)
#define CHECK_GE(a, b) BOUGH_CHECK_OP(a, >=, b)
#define CHECK_OK(expr)                                                                          \
  do {                                                                                          \
    const auto& check_status_ = (expr);                                                         \
    if (!check_status_.ok())                                                                    \
      ::bough::internal::CheckFailure(__FILE__, __LINE__, #expr).stream() << check_status_;     \
  } while (false)
