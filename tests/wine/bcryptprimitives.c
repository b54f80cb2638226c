/* bcryptprimitives.dll, which wine 8.0 lacks and all that newer Rust has built asks for random bytes.
 * https://learn.microsoft.com/en-us/windows/win32/seccng/processprng
 * https://learn.microsoft.com/en-us/windows/win32/api/ntsecapi/nf-ntsecapi-rtlgenrandom (SystemFunction036)
 */

#include <stddef.h>

__declspec(dllimport) unsigned char SystemFunction036(void *buffer, unsigned long length);

__declspec(dllexport) int ProcessPrng(unsigned char *buffer, size_t length)
{
    while (length) {
        unsigned long step = length < 1 << 20 ? (unsigned long)length : 1 << 20;
        if (!SystemFunction036(buffer, step))
            return 0;
        buffer += step;
        length -= step;
    }
    return 1;
}

/* Built without C's library: this is where it starts. */
int __stdcall DllMainCRTStartup(void *module, unsigned long reason, void *reserved)
{
    (void)module, (void)reason, (void)reserved;
    return 1;
}
