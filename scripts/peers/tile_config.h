/* Included before llama.cpp's C++ files. GCC before 14 (13.3, 12.4) tells the optimizer that
   `_tile_loadconfig` reads 8 of its 64 bytes, so the rest is never written and AMX instructions
   fault (GCC PR target/114098). Does nothing elsewhere. */
#if defined(__AMX_TILE__) && defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 14
#include <immintrin.h>
#define _tile_loadconfig(config) \
    __asm__ volatile("ldtilecfg %X0" ::"m"(*(const char(*)[64])(config)))
#endif
