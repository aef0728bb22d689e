#include "common/log.h"

#include <memory>
#include <utility>

#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "common/check.h"
#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"

namespace bough {
namespace {

using Json = nlohmann::ordered_json;

struct Logger {
  // The line is complete when spdlog gets it: the pattern adds nothing to it.
  Logger() : out("bough", std::make_shared<spdlog::sinks::stderr_sink_mt>()) {
    out.set_pattern("%v");
  }
  spdlog::logger out;
  nlohmann::json process_fields = nlohmann::json::object();
};

// Never destroyed: threads may log while the process exits.
Logger& GetLogger() {
  static Logger& logger = *new Logger;
  return logger;
}

struct Level {
  const char* name;
  spdlog::level::level_enum value;
};

Level ToLevel(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return {"debug", spdlog::level::debug};
    case LogLevel::kInfo:
      return {"info", spdlog::level::info};
    case LogLevel::kWarning:
      return {"warning", spdlog::level::warn};
    case LogLevel::kError:
      return {"error", spdlog::level::err};
  }
  return {"error", spdlog::level::err};
}

// Keeps what stands in `line` already: a field cannot take the place of ts, level or msg.
void Append(const nlohmann::json& fields, Json& line) {
  CHECK(fields.is_object()) << fields.dump();
  for (const auto& [key, value] : fields.items()) line.emplace(key, value);
}

}  // namespace

void InitLog(std::string_view level, nlohmann::json process_fields) {
  CHECK(process_fields.is_object()) << process_fields.dump();
  Logger& logger = GetLogger();
  logger.process_fields = std::move(process_fields);
  for (LogLevel l : {LogLevel::kDebug, LogLevel::kInfo, LogLevel::kWarning, LogLevel::kError}) {
    if (level != ToLevel(l).name) continue;
    logger.out.set_level(ToLevel(l).value);
    return;
  }
  CHECK(false) << "log level must be debug, info, warning or error, is \"" << level << "\"";
}

void Log(LogLevel level, std::string_view msg, nlohmann::json fields) {
  Logger& logger = GetLogger();
  const auto [name, value] = ToLevel(level);
  if (!logger.out.should_log(value)) return;
  Json line;
  line["ts"] = absl::FormatTime("%Y-%m-%dT%H:%M:%E3SZ", absl::Now(), absl::UTCTimeZone());
  line["level"] = name;
  Append(logger.process_fields, line);
  line["msg"] = std::string(msg);
  Append(fields, line);
  // Bytes that are not UTF-8 become U+FFFD, so that every line is JSON.
  const std::string text = line.dump(-1, ' ', false, Json::error_handler_t::replace);
  logger.out.log(value, spdlog::string_view_t(text.data(), text.size()));
}

}  // namespace bough
