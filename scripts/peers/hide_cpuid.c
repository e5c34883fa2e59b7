/* Make the engines of this process see an older x86-64 processor: AVX2 and FMA, without AVX-512,
 * AMX and VNNI.
 *
 * Every engine picks its kernels at run time by what the CPUID instruction says. The dynamic linker
 * shows each library to this one when it is mapped and before any of its code runs (rtld-audit(7));
 * at the places that HIDE_CPUID_PLACES lists, CPUID (0f a2) is overwritten in memory with UD2
 * (0f 0b), whose trap is answered with the real values less the hidden features. Nothing on disk
 * changes, and only CPUID itself gets slower, which engines ask while they load.
 *
 *   cc -O2 -shared -fPIC -o hide_cpuid.so hide_cpuid.c
 *   LD_AUDIT=./hide_cpuid.so HIDE_CPUID_PLACES=places.txt program
 *
 * A line of that file: the address in a library as `objdump -d` says it, a blank, its path
 * without symbolic links.
 * Ends the process with code 97 where another instruction lies there, or memory stays read-only.
 * Bits: Intel SDM volume 2A, CPUID, leaf 7.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <limits.h>
#include <link.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#define BIT(n) (1u << (n))

/* leaf 7, subleaf 0 */
static const uint32_t EBX0 = /* AVX512 F DQ IFMA PF ER CD BW VL */
    BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31);
static const uint32_t ECX0 = /* AVX512 VBMI VBMI2 VNNI BITALG VPOPCNTDQ */
    BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14);
static const uint32_t EDX0 = /* AVX512 4VNNIW 4FMAPS VP2INTERSECT, AMX-BF16, FP16, AMX TILE INT8 */
    BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25);
/* leaf 7, subleaf 1 */
static const uint32_t EAX1 = /* AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA */
    BIT(4) | BIT(5) | BIT(21) | BIT(23);
static const uint32_t EDX1 = /* AVX-VNNI-INT8, NE-CONVERT, AMX-COMPLEX, AVX-VNNI-INT16, AVX10 */
    BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19);

static const uint8_t CPUID[2] = {0x0f, 0xa2}, UD2[2] = {0x0f, 0x0b};

static void give_up(const char *why, const char *where) {
    fprintf(stderr, "hide_cpuid: %s: %s\n", why, where);
    _exit(97);
}

static void on_trap(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    uint32_t leaf = (uint32_t)registers[REG_RAX], subleaf = (uint32_t)registers[REG_RCX];
    uint32_t a, b, c, d;
    (void)info;
    if (memcmp((const void *)registers[REG_RIP], UD2, sizeof UD2)) {
        signal(number, SIG_DFL); /* some other instruction: die of it */
        return;
    }
    __cpuid_count(leaf, subleaf, a, b, c, d);
    if (leaf == 7 && subleaf == 0) {
        b &= ~EBX0;
        c &= ~ECX0;
        d &= ~EDX0;
    } else if (leaf == 7 && subleaf == 1) {
        a &= ~EAX1;
        d &= ~EDX1;
    }
    registers[REG_RAX] = a;
    registers[REG_RBX] = b;
    registers[REG_RCX] = c;
    registers[REG_RDX] = d;
    registers[REG_RIP] += 2;
}

static void overwrite(uint8_t *place, const char *library) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), start = (uintptr_t)place & ~(page - 1);
    size_t length = (uintptr_t)place + sizeof UD2 - start;
    if (memcmp(place, CPUID, sizeof CPUID))
        give_up("not the library that was looked at", library);
    if (mprotect((void *)start, length, PROT_READ | PROT_WRITE | PROT_EXEC))
        give_up("its code cannot be changed", library);
    memcpy(place, UD2, sizeof UD2);
    mprotect((void *)start, length, PROT_READ | PROT_EXEC);
}

unsigned int la_version(unsigned int version) {
    struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
    sigaction(SIGILL, &action, 0);
    return version < LAV_CURRENT ? version : LAV_CURRENT;
}

unsigned int la_objopen(struct link_map *map, Lmid_t space, uintptr_t *cookie) {
    const char *list = getenv("HIDE_CPUID_PLACES");
    unsigned long address;
    char path[PATH_MAX], name[PATH_MAX];
    FILE *file;
    (void)space, (void)cookie;
    if (!list || !(file = fopen(list, "r")))
        give_up("no list of places", list ? list : "HIDE_CPUID_PLACES");
    if (realpath(map->l_name, name)) /* the program itself and the kernel's page have none */
        while (fscanf(file, "%lx %4095[^\n]", &address, path) == 2)
            if (!strcmp(path, name))
                overwrite((uint8_t *)map->l_addr + address, path);
    fclose(file);
    return 0;
}
