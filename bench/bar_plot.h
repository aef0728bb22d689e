// Bars as SVG: panels side by side, the same rows in each, a few bars per row.
#pragma once

#include <string>
#include <vector>

namespace bough {

struct BarPanel {
  std::string title;
  std::vector<std::vector<double>> values;  // [row][bar]
  int digits = 2;                           // after the decimal point
};

struct BarPlot {
  std::string title, note;
  std::vector<std::string> rows;
  std::vector<std::string> bars;
  std::vector<bool> highlighted;  // by row
  std::vector<BarPanel> panels;
};

// A bar much longer than most is cut off and ends in an arrow; its number says how long it is.
std::string ToSvg(const BarPlot& plot);

}  // namespace bough
