/* The FUSE layer of WinFsp as mfusepy meets it on Windows, without a driver: libfuse 2.8's interface with the
 * types of Windows. It gives the letter to a folder, or makes the directory, walks through all files once, writes what it has seen to
 * the file that IMAGEFS_STUB_LOG names, and waits to be told to end. Without C's own library.
 */

#include <stddef.h>
#include <stdint.h>

#define IMPORT __declspec(dllimport)
#define EXPORT __declspec(dllexport)
#define WINAPI __stdcall

IMPORT void *WINAPI CreateFileA(const char *, uint32_t, uint32_t, void *, uint32_t, uint32_t, void *);
IMPORT int WINAPI WriteFile(void *, const void *, uint32_t, uint32_t *, void *);
IMPORT int WINAPI CloseHandle(void *);
IMPORT void *WINAPI CreateEventA(void *, int, int, const char *);
IMPORT int WINAPI SetEvent(void *);
IMPORT uint32_t WINAPI WaitForSingleObject(void *, uint32_t);
IMPORT uint32_t WINAPI GetEnvironmentVariableA(const char *, char *, uint32_t);
IMPORT int WINAPI DefineDosDeviceA(uint32_t, const char *, const char *);
IMPORT int WINAPI CreateDirectoryA(const char *, void *);
IMPORT int WINAPI RemoveDirectoryA(const char *);

struct times { int64_t seconds, nanoseconds; };
struct status {
    uint32_t dev; uint64_t ino; uint32_t mode; uint16_t nlink; uint32_t uid, gid, rdev; int64_t size;
    struct times accessed, modified, changed; int32_t blksize; int64_t blocks; struct times born;
};
struct file { int32_t flags; uint32_t fh_old; int32_t writepage; uint32_t bits; uint64_t fh, lock_owner; };
struct volume { uint64_t bsize, frsize, blocks, bfree, bavail, files, ffree, favail, fsid, flag, namemax; };
struct connection {
    uint32_t major, minor, async_read, max_write, max_readahead, capable, want, reserved[25];
};
struct context { void *fuse; uint32_t uid, gid; int32_t pid; void *data; uint32_t umask; };
typedef int (*filler)(void *, const char *, const struct status *, int64_t);
struct operations { /* by their places in WinFsp's fuse.h */
    int (*getattr)(const char *, struct status *);
    void *unused1[13];
    int (*open)(const char *, struct file *);
    int (*read)(const char *, char *, size_t, int64_t, struct file *);
    void *write;
    int (*statfs)(const char *, struct volume *);
    void *flush;
    int (*release)(const char *, struct file *);
    void *unused2[5];
    int (*opendir)(const char *, struct file *);
    int (*readdir)(const char *, void *, filler, int64_t, struct file *);
    int (*releasedir)(const char *, struct file *);
    void *fsyncdir;
    void *(*init)(struct connection *);
    void (*destroy)(void *);
};

static struct operations *ops;
static struct context context;
static void *loop, *output;

void *memset(void *at, int value, size_t size)
{
    for (volatile char *byte = at; size--; byte++)
        *byte = (char)value;
    return at;
}

void *memcpy(void *to, const void *from, size_t size)
{
    for (size_t i = 0; i < size; i++)
        ((volatile char *)to)[i] = ((const char *)from)[i];
    return to;
}

static size_t length(const char *text)
{
    size_t size = 0;
    while (text[size])
        size++;
    return size;
}

static int same(const char *one, const char *other)
{
    while (*one && *one == *other)
        one++, other++;
    return *one == *other;
}

static void put(const char *text)
{
    uint32_t done;
    WriteFile(output, text, (uint32_t)length(text), &done, NULL);
}

static void put_number(const char *name, int64_t number)
{
    char text[17];
    for (int i = 0; i < 16; i++)
        text[i] = "0123456789abcdef"[(uint64_t)number >> (60 - 4 * i) & 15];
    text[16] = 0;
    put(name);
    put(text);
}

static char names[1 << 16]; /* of the directories being listed, each name with its end */
static size_t names_used;

static int fill(void *buffer, const char *name, const struct status *known, int64_t offset)
{
    size_t size = length(name) + 1;
    if (names_used + size > sizeof names)
        return 1;
    memcpy(names + names_used, name, size);
    names_used += size;
    return 0;
}

static void read_file(const char *path, int64_t size)
{
    static char buffer[65536 + 7];
    struct file file = {0};
    int failed = ops->open(path, &file);
    put_number(" open ", failed);
    if (failed)
        return;
    uint64_t hash = 0xcbf29ce484222325; /* FNV-1a */
    int64_t at = 0;
    while (at <= size) { /* once beyond the end too */
        int got = ops->read(path, buffer, sizeof buffer, at, &file);
        if (got <= 0) {
            put_number(" end ", got);
            break;
        }
        for (int i = 0; i < got; i++)
            hash = (hash ^ (unsigned char)buffer[i]) * 0x100000001b3;
        at += got;
    }
    put_number(" hash ", (int64_t)hash);
    ops->release(path, &file);
    struct file writing = {2};
    put_number(" writing ", ops->open(path, &writing));
}

static void look(char *path, int depth)
{
    struct status status = {0};
    int failed = ops->getattr(path, &status);
    put(path);
    put_number(" stat ", failed);
    put_number(" mode ", status.mode);
    put_number(" size ", status.size);
    put_number(" modified ", status.modified.seconds);
    put_number(" ", status.modified.nanoseconds);
    put_number(" born ", status.born.seconds);
    if ((status.mode & 0170000) != 0040000) {
        if (!failed)
            read_file(path, status.size);
        put("\n");
        return;
    }
    put("\n");
    if (depth > 4)
        return;
    struct file directory = {0};
    size_t first = names_used, end = length(path);
    if (!ops->opendir(path, &directory)) {
        ops->readdir(path, NULL, fill, 0, &directory);
        ops->releasedir(path, &directory);
    }
    size_t last = names_used;
    for (size_t at = first; at < last; at += length(names + at) + 1) {
        const char *name = names + at;
        if (same(name, ".") || same(name, "..") || same(name, "many") || same(name, "sparse.bin")
            || same(name, "slow.bin") || same(name, "stuck.bin"))
            continue;
        size_t slash = end > 1 ? end : 0;
        path[slash] = '/';
        memcpy(path + slash + 1, name, length(name) + 1);
        look(path, depth + 1);
        path[end] = 0;
    }
    names_used = first;
}

EXPORT int fuse_version(void) { return 28; }

EXPORT struct context *fuse_get_context(void) { return &context; }

EXPORT void fuse_exit(void *fuse) { SetEvent(fuse); }

EXPORT int fuse_main_real(int count, char **arguments, struct operations *given, size_t size, void *data)
{
    static char path[4096], log[1024];
    struct connection connection = {7, 12, 1};
    struct volume volume = {0};
    const char *mountpoint = arguments[count - 1];

    ops = given;
    GetEnvironmentVariableA("IMAGEFS_STUB_LOG", log, sizeof log);
    output = CreateFileA(log, 0x40000000, 3, NULL, 2, 0, NULL);
    for (int i = 1; i < count; i++) {
        put(arguments[i]);
        put("\n");
    }
    context.fuse = loop = CreateEventA(NULL, 1, 0, NULL);
    context.data = ops->init(&connection);
    put_number("want ", connection.want);
    put_number(" statfs ", ops->statfs("/", &volume));
    put_number(" size ", (int64_t)(volume.frsize * volume.blocks));
    put("\n");
    path[0] = '/';
    look(path, 0);
    if (mountpoint[2])
        CreateDirectoryA(mountpoint, NULL);
    else
        DefineDosDeviceA(0, mountpoint, "C:\\");
    WaitForSingleObject(loop, 120000);
    if (mountpoint[2])
        RemoveDirectoryA(mountpoint);
    else
        DefineDosDeviceA(2, mountpoint, NULL);
    ops->destroy(context.data);
    put("end\n");
    CloseHandle(output);
    return 0;
}

int WINAPI DllMainCRTStartup(void *module, uint32_t reason, void *reserved) { return 1; }
