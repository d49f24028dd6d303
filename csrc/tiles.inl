// Loops whose counts are constants, and tiles over a range.

#if defined(__GNUC__) && !defined(__clang__)
#define UNROLL _Pragma("GCC unroll 32")
#else
#define UNROLL _Pragma("unroll")
#endif

template <int... J, class Fn>
PAGODA_INLINE void unroll_impl(std::integer_sequence<int, J...>, Fn &&fn) {
    (fn(std::integral_constant<int, J>{}), ...);
}
template <int N, class Fn>
PAGODA_INLINE void unroll(Fn &&fn) {
    unroll_impl(std::make_integer_sequence<int, N>{}, static_cast<Fn &&>(fn));
}

// Calls fn(tile size as a constant, first token) over [begin, end): tiles of Tile, then smaller ones, down to Least. With
// tiles of eight there are seven and five as well, since each piece of a rest unpacks codes anew; and the last tokens, if
// they are more than a tile, are halved: one token alone costs half as much as eight.
template <int Tile, int Least = 1, class Fn>
PAGODA_INLINE void for_tiles(int64_t begin, int64_t end, Fn &&fn) {
    constexpr bool kEvery = Tile == 8 && Least == 1;
    int64_t t = begin;
    for (; t + (kEvery ? 2 * Tile : Tile) <= end; t += Tile) fn(std::integral_constant<int, Tile>{}, t);
    int64_t until = kEvery && end - t > Tile ? t + (end - t + 1) / 2 : end;  // where a tile has to end
    const auto rest = [&](auto size) __attribute__((always_inline)) {
        if constexpr ((Least <= size && size < Tile) || (kEvery && size == Tile))
            while (t + size <= until) {
                fn(size, t);
                t += size;
                if (t == until) until = end;
            }
    };
    rest(std::integral_constant<int, 8>{});
    if constexpr (Tile == 8 && Least == 1) rest(std::integral_constant<int, 7>{});
    rest(std::integral_constant<int, 6>{});
    if constexpr (Tile == 8 && Least == 1) rest(std::integral_constant<int, 5>{});
    rest(std::integral_constant<int, 4>{});
    rest(std::integral_constant<int, 3>{});
    rest(std::integral_constant<int, 2>{});
    rest(std::integral_constant<int, 1>{});
}
