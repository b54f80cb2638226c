/* A program of Windows that runs the program of its name of the system below wine, with the same arguments:
 * paths on Z: become the paths that they are there. wine's own programs start a browser in this way. A pipe of
 * wine's is none of the system's: what the program writes goes through a file.
 */

#include <stddef.h>

#define IMPORT __declspec(dllimport)
typedef unsigned short letter;

IMPORT letter *GetCommandLineW(void);
IMPORT letter **CommandLineToArgvW(const letter *line, int *count);
IMPORT int WideCharToMultiByte(unsigned page, unsigned flags, const letter *text, int length, char *bytes, int size,
                               const char *unknown, int *was_unknown);
IMPORT void *CreateFileA(const char *name, unsigned access, unsigned share, void *security, unsigned how,
                         unsigned flags, void *template);
IMPORT int ReadFile(void *file, void *buffer, unsigned length, unsigned *done, void *overlapped);
IMPORT int WriteFile(void *file, const void *buffer, unsigned length, unsigned *done, void *overlapped);
IMPORT int CloseHandle(void *handle);
IMPORT void *GetStdHandle(unsigned which);
IMPORT unsigned GetCurrentProcessId(void);
IMPORT void ExitProcess(unsigned code);
IMPORT void *GetModuleHandleA(const char *name);
IMPORT void *GetProcAddress(void *module, const char *name);

#define UTF8 65001
#define MOST 64
#define STANDARD_OUTPUT ((unsigned)-11)
#define GENERIC_READ 0x80000000u
#define SHARE_ALL 7u
#define OPEN_EXISTING 3u
#define DELETE_ON_CLOSE 0x04000000u

static char bytes[65536];
static char *arguments[MOST + 4] = {"sh", "-c"};
static char script[] = "exec \"$0\" \"$@\" > /tmp/imagefs-wine-00000000";
static char written[] = "Z:\\tmp\\imagefs-wine-00000000";

static void as_unix_paths(char *word)
{
    char *out = word;
    for (char *at = word; *at;) {
        if (at[0] == 'Z' && at[1] == ':' && at[2] == '\\') {
            for (at += 2; *at && *at != ','; at++)
                *out++ = *at == '\\' ? '/' : *at;
        } else {
            *out++ = *at++;
        }
    }
    *out = 0;
}

static void name_file(char *end)
{
    for (unsigned id = GetCurrentProcessId(), i = 0; i < 8; i++, id >>= 4)
        *--end = "0123456789abcdef"[id & 15];
}

static void pass_on(void)
{
    void *file = CreateFileA(written, GENERIC_READ, SHARE_ALL, NULL, OPEN_EXISTING, DELETE_ON_CLOSE, NULL);
    unsigned got, put;
    while (ReadFile(file, bytes, sizeof bytes, &got, NULL) && got)
        WriteFile(GetStdHandle(STANDARD_OUTPUT), bytes, got, &put, NULL);
    CloseHandle(file);
}

void start(void)
{
    char **program = arguments + 3;
    int count = 0, used = 0;
    letter **words = CommandLineToArgvW(GetCommandLineW(), &count);
    int (*spawn)(char *const *, int) = GetProcAddress(GetModuleHandleA("ntdll.dll"), "__wine_unix_spawnvp");
    if (!spawn || count > MOST)
        ExitProcess(127);
    for (int i = 0; i < count; i++) {
        int size = WideCharToMultiByte(UTF8, 0, words[i], -1, bytes + used, sizeof bytes - used, NULL, NULL);
        program[i] = bytes + used;
        as_unix_paths(program[i]);
        used += size;
    }
    char *name = program[0]; /* without its folder and .exe it is looked for on PATH */
    for (char *at = name; *at; at++) {
        if (*at == '/' || *at == '\\')
            name = at + 1;
    }
    for (char *at = name; *at; at++) {
        if (at[0] == '.' && at[1] == 'e' && at[2] == 'x' && at[3] == 'e' && !at[4])
            *at = 0;
    }
    program[0] = name;
    name_file(script + sizeof script - 1);
    name_file(written + sizeof written - 1);
    arguments[2] = script;
    int code = spawn(arguments, 1);
    pass_on();
    ExitProcess(code);
}
