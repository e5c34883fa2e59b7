/* Make this process see an older x86-64 processor: AVX2 and FMA, without AVX-512, AMX and VNNI.
 *
 * Every engine picks its kernels at run time by what the CPUID instruction says. Linux can make that
 * instruction fault (arch_prctl ARCH_SET_CPUID); the handler then answers with the real values less
 * the hidden features. Threads inherit the setting. Only CPUID itself gets slower, and engines ask
 * it while they load.
 *
 *   cc -O2 -shared -fPIC -o hide_cpuid.so hide_cpuid.c && LD_PRELOAD=./hide_cpuid.so program
 *
 * Ends the process with code 97 where the kernel or processor cannot do it.
 * Bits: Intel SDM volume 2A, CPUID, leaf 7.
 */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
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

static int let_cpuid(int allowed) { return (int)syscall(SYS_arch_prctl, ARCH_SET_CPUID, allowed); }

static void on_fault(int number, siginfo_t *info, void *context) {
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    const uint8_t *code = (const uint8_t *)registers[REG_RIP];
    uint32_t leaf, subleaf, a, b, c, d;
    (void)info;
    if (code[0] != 0x0f || code[1] != 0xa2) { /* a real fault: die of it */
        signal(number, SIG_DFL);
        return;
    }
    leaf = (uint32_t)registers[REG_RAX];
    subleaf = (uint32_t)registers[REG_RCX];
    let_cpuid(1);
    __cpuid_count(leaf, subleaf, a, b, c, d);
    let_cpuid(0);
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

__attribute__((constructor)) static void hide(void) {
    static const char message[] = "hide_cpuid: this kernel or processor cannot hide features\n";
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_NODEFER};
    sigaction(SIGSEGV, &action, 0);
    if (let_cpuid(0)) {
        ssize_t written = write(2, message, sizeof message - 1);
        (void)written;
        _exit(97);
    }
}
