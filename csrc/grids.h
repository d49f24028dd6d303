// The tables behind the IQ types; see grids.cpp.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace pagoda {

extern const uint16_t kGridIQ2_XXS[256], kGridIQ2_XS[512], kGridIQ2_S[1024], kGridIQ1[2048], kGridIQ3_XXS[256], kGridIQ3_S[512];

// The points of a type's grid, by the name after kGrid. Throws std::invalid_argument where there is none.
std::vector<uint16_t> grid_points(const std::string &name);

}  // namespace pagoda
