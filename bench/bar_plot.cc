#include "bench/bar_plot.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace bough {
namespace {

constexpr int kLabels = 175, kPanel = 235,
              kBarRoom = 165;  // px: row labels, a panel, its longest bar
constexpr int kBar = 9, kRowGap = 8, kTop = 96, kMargin = 12;
// By bar, from light to dark: highlighted rows and the others.
constexpr const char* kHighlighted[] = {"#9ed2b4", "#4fa878", "#1d6b43"};
constexpr const char* kOther[] = {"#cfd6dd", "#9aa7b4", "#66727f"};
constexpr int kNumColours = 3;

// Twice the upper quartile, where that cuts something off.
double AxisEnd(const BarPanel& panel) {
  std::vector<double> all;
  for (const auto& row : panel.values) all.insert(all.end(), row.begin(), row.end());
  if (all.empty()) return 1;
  std::sort(all.begin(), all.end());
  const double end = std::min(all.back(), 2 * all[all.size() * 3 / 4]);
  return end > 0 ? end : 1;
}

void Text(std::string* svg, double x, double y, const std::string& text, const char* style) {
  absl::StrAppendFormat(svg, "<text x=\"%.1f\" y=\"%.1f\" %s>%s</text>\n", x, y, style, text);
}

}  // namespace

std::string ToSvg(const BarPlot& plot) {
  const int num_bars = static_cast<int>(plot.bars.size());
  const int num_rows = static_cast<int>(plot.rows.size());
  const int row_height = num_bars * kBar + kRowGap;
  const int width = kMargin + kLabels + static_cast<int>(plot.panels.size()) * kPanel;
  const int height = kTop + num_rows * row_height + kMargin;
  std::string svg = absl::StrFormat(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" width=\"%d\" height=\"%d\" "
      "font-family=\"sans-serif\" font-size=\"11\" fill=\"#222\">\n"
      "<rect width=\"%d\" height=\"%d\" fill=\"#fff\"/>\n",
      width, height, width, height, width, height);
  Text(&svg, kMargin, 22, plot.title, "font-size=\"15\" font-weight=\"bold\"");
  Text(&svg, kMargin, 40, plot.note, "fill=\"#555\"");
  for (int b = 0; b < num_bars; ++b) {
    const double x = kMargin + b * 80;
    absl::StrAppendFormat(&svg,
                          "<rect x=\"%.1f\" y=\"55\" width=\"10\" height=\"9\" fill=\"%s\"/>\n", x,
                          kOther[b % kNumColours]);
    Text(&svg, x + 14, 64, plot.bars[b], "");
  }
  for (int r = 0; r < num_rows; ++r) {
    const double y = kTop + r * row_height + num_bars * kBar / 2.0 + 4;
    Text(&svg, kMargin + kLabels - 12, y, plot.rows[r],
         plot.highlighted[r] ? "text-anchor=\"end\" font-weight=\"bold\"" : "text-anchor=\"end\"");
  }
  for (size_t p = 0; p < plot.panels.size(); ++p) {
    const BarPanel& panel = plot.panels[p];
    const double x = kMargin + kLabels + static_cast<double>(p) * kPanel;
    const double end = AxisEnd(panel);
    Text(&svg, x, kTop - 8, panel.title, "font-weight=\"bold\"");
    for (int r = 0; r < num_rows; ++r) {
      for (int b = 0; b < num_bars; ++b) {
        const double value = panel.values[r][b];
        const bool cut = value > 1.001 * end;
        const double length = std::max(1.0, std::min(value / end, 1.0) * kBarRoom);
        const double y = kTop + r * row_height + b * kBar;
        absl::StrAppendFormat(
            &svg, "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%d\" fill=\"%s\"/>\n", x, y,
            length, kBar - 1, (plot.highlighted[r] ? kHighlighted : kOther)[b % kNumColours]);
        Text(&svg, x + length + 3, y + kBar - 1.5,
             absl::StrFormat("%s%.*f", cut ? "\u2192 " : "", panel.digits, value),
             "font-size=\"8.5\" fill=\"#444\"");
      }
    }
    absl::StrAppendFormat(&svg,
                          "<line x1=\"%.1f\" y1=\"%d\" x2=\"%.1f\" y2=\"%d\" stroke=\"#888\"/>\n",
                          x, kTop - 2, x, height - kMargin - kRowGap + 2);
  }
  return absl::StrCat(svg, "</svg>\n");
}

}  // namespace bough
