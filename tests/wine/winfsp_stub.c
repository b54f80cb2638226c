/* A stand-in for winfsp-x64.dll below winfspy's extension for Windows: it keeps what was mounted, and calls the
 * adapter's operations from threads that Python did not make, when a test asks for it (test_*).
 *
 * What each function does is that of "WinFsp API", https://winfsp.dev/apiref/. Offsets in FSP_FILE_SYSTEM and
 * FSP_FSCTL_DIR_INFO are those that the extension tells (tests/mounters/winfsp/pe_types.py).
 */

#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <wchar.h>
#include <windows.h>

#define EXPORT __declspec(dllexport)
#define SUCCESS 0
#define NO_SUCH_DEVICE 0xC000000Eu
#define INVALID_PARAMETER 0xC000000Du
#define NOT_IMPLEMENTED 0xC0000002u
#define OBJECT_NAME_COLLISION 0xC0000035u
#define OBJECT_PATH_NOT_FOUND 0xC000003Au

#define FILE_SYSTEM_SIZE 792
#define AT_INTERFACE 728
#define AT_DISPATCHER_RESULT 748
#define AT_DEBUG_LOG 768
#define PARAMETERS_SIZE 504
#define FREED 0xDD

#define THREADS 8
#define VOLUMES 64
#define ARGUMENTS 9

typedef uint64_t (*operation)(uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t, uint64_t,
                              uint64_t);

struct work {
    struct work *next;
    operation function;
    uint64_t arguments[ARGUMENTS];
    uint64_t result;
    int cancelled;
    HANDLE done;
};

struct volume {
    uint8_t *file_system; /* FSP_FILE_SYSTEM: what the extension holds */
    uint8_t parameters[PARAMETERS_SIZE];
    wchar_t device[64];
    wchar_t mountpoint[1024];
    int made_directory, running, deleted;
    DWORD thread_ids[THREADS];
    HANDLE threads[THREADS];
    struct work *first, **last;
};

static SRWLOCK lock = SRWLOCK_INIT;
static CONDITION_VARIABLE changed = CONDITION_VARIABLE_INIT;
static struct volume volumes[VOLUMES];
static int number_of_volumes;
static int driver_is_missing;
static uint32_t letters = 1u << ('C' - 'A');
static char faults[8192];

static void fault(const char *text)
{
    AcquireSRWLockExclusive(&lock);
    strncat(faults, text, sizeof faults - strlen(faults) - 2);
    strcat(faults, "\n");
    ReleaseSRWLockExclusive(&lock);
}

static struct volume *find(void *file_system, const char *doing)
{
    for (int i = 0; i < number_of_volumes; i++)
        if (volumes[i].file_system == file_system && !volumes[i].deleted)
            return &volumes[i];
    char text[200];
    snprintf(text, sizeof text, "%s of a file system that is not there", doing);
    fault(text);
    return NULL;
}

/* Return the letter of X: or \\.\X:, or 0. */
static wchar_t letter(const wchar_t *mountpoint)
{
    if (!wcsncmp(mountpoint, L"\\\\.\\", 4))
        mountpoint += 4;
    wchar_t found = mountpoint[0] & ~0x20;
    return found >= 'A' && found <= 'Z' && mountpoint[1] == ':' && !mountpoint[2] ? found : 0;
}

static uint32_t collision(const wchar_t *mountpoint)
{
    if (letter(mountpoint))
        return letters >> (letter(mountpoint) - 'A') & 1 ? OBJECT_NAME_COLLISION : SUCCESS;
    wchar_t parent[1024];
    wcsncpy(parent, mountpoint, 1023);
    parent[1023] = 0;
    wchar_t *end = wcsrchr(parent, '\\');
    if (!end)
        return OBJECT_PATH_NOT_FOUND;
    *end = 0;
    if (GetFileAttributesW(parent) == INVALID_FILE_ATTRIBUTES)
        return OBJECT_PATH_NOT_FOUND;
    return GetFileAttributesW(mountpoint) == INVALID_FILE_ATTRIBUTES ? SUCCESS : OBJECT_NAME_COLLISION;
}

/* What the extension calls. */

EXPORT uint32_t FspVersion(uint32_t *version)
{
    *version = 2u << 16;
    return SUCCESS;
}

EXPORT void FspDebugLogSetHandle(HANDLE handle)
{
    (void)handle;
}

EXPORT uint32_t FspFileSystemCreate(wchar_t *device, void *parameters, void *table, void **result)
{
    if (driver_is_missing)
        return NO_SUCH_DEVICE;
    AcquireSRWLockExclusive(&lock);
    int place = 0;
    while (place < number_of_volumes && !volumes[place].deleted)
        place++;
    if (place == VOLUMES) {
        ReleaseSRWLockExclusive(&lock);
        return INVALID_PARAMETER;
    }
    struct volume *volume = &volumes[place];
    memset(volume, 0, sizeof *volume);
    /* Never freed: who uses it after its end finds something else than its contents. */
    volume->file_system = HeapAlloc(GetProcessHeap(), HEAP_ZERO_MEMORY, FILE_SYSTEM_SIZE);
    memcpy(volume->file_system + AT_INTERFACE, &table, sizeof table);
    memcpy(volume->parameters, parameters, PARAMETERS_SIZE);
    wcsncpy(volume->device, device, 63);
    volume->last = &volume->first;
    if (place == number_of_volumes)
        number_of_volumes++;
    ReleaseSRWLockExclusive(&lock);
    *result = volume->file_system;
    return SUCCESS;
}

EXPORT uint32_t FspFileSystemPreflight(wchar_t *device, wchar_t *mountpoint)
{
    (void)device;
    if (driver_is_missing)
        return NO_SUCH_DEVICE;
    return mountpoint ? collision(mountpoint) : SUCCESS;
}

/* Unlike the real one it refuses a letter that is in use. */
EXPORT uint32_t FspFileSystemSetMountPoint(void *file_system, wchar_t *mountpoint)
{
    struct volume *volume = find(file_system, "SetMountPoint");
    if (!volume)
        return INVALID_PARAMETER;
    uint32_t status = collision(mountpoint);
    if (status)
        return status;
    if (letter(mountpoint))
        letters |= 1u << (letter(mountpoint) - 'A');
    else if (wcscmp(volume->device, L"WinFsp.Disk") || !CreateDirectoryW(mountpoint, NULL))
        return INVALID_PARAMETER;
    else
        volume->made_directory = 1;
    wcsncpy(volume->mountpoint, mountpoint, 1023);
    return SUCCESS;
}

static void unmount(struct volume *volume)
{
    if (volume->made_directory)
        RemoveDirectoryW(volume->mountpoint);
    else if (volume->mountpoint[0])
        letters &= ~(1u << (letter(volume->mountpoint) - 'A'));
    volume->made_directory = 0;
    volume->mountpoint[0] = 0;
}

EXPORT void FspFileSystemRemoveMountPoint(void *file_system)
{
    struct volume *volume = find(file_system, "RemoveMountPoint");
    if (volume)
        unmount(volume);
}

EXPORT wchar_t *FspFileSystemMountPointF(void *file_system)
{
    struct volume *volume = find(file_system, "MountPoint");
    return volume && volume->mountpoint[0] ? volume->mountpoint : NULL;
}

static DWORD WINAPI serve(void *argument)
{
    struct volume *volume = argument;
    for (;;) {
        AcquireSRWLockExclusive(&lock);
        while (volume->running && !volume->first)
            SleepConditionVariableSRW(&changed, &lock, INFINITE, 0);
        struct work *work = volume->first;
        int running = volume->running;
        if (work) {
            volume->first = work->next;
            if (!volume->first)
                volume->last = &volume->first;
        }
        ReleaseSRWLockExclusive(&lock);
        if (!work)
            return 0;
        uint64_t *a = work->arguments;
        if (running)
            work->result = work->function(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8]);
        else
            work->cancelled = 1;
        SetEvent(work->done);
    }
}

EXPORT uint32_t FspFileSystemStartDispatcher(void *file_system, uint32_t count)
{
    (void)count;
    struct volume *volume = find(file_system, "StartDispatcher");
    if (!volume)
        return INVALID_PARAMETER;
    volume->running = 1;
    for (int i = 0; i < THREADS; i++)
        volume->threads[i] = CreateThread(NULL, 0, serve, volume, 0, &volume->thread_ids[i]);
    return SUCCESS;
}

EXPORT void FspFileSystemStopDispatcher(void *file_system)
{
    struct volume *volume = find(file_system, "StopDispatcher");
    if (!volume || !volume->running)
        return;
    for (int i = 0; i < THREADS; i++)
        if (volume->thread_ids[i] == GetCurrentThreadId()) {
            fault("StopDispatcher called from a callback: it would wait for itself");
            return;
        }
    AcquireSRWLockExclusive(&lock);
    volume->running = 0;
    WakeAllConditionVariable(&changed);
    ReleaseSRWLockExclusive(&lock);
    WaitForMultipleObjects(THREADS, volume->threads, TRUE, INFINITE);
    for (int i = 0; i < THREADS; i++)
        CloseHandle(volume->threads[i]);
}

EXPORT void FspFileSystemDelete(void *file_system)
{
    struct volume *volume = find(file_system, "Delete");
    if (!volume)
        return;
    if (volume->running) {
        fault("Delete of a file system whose dispatcher runs");
        return;
    }
    unmount(volume);
    AcquireSRWLockExclusive(&lock);
    volume->deleted = 1;
    memset(volume->file_system, FREED, FILE_SYSTEM_SIZE);
    ReleaseSRWLockExclusive(&lock);
}

EXPORT void FspFileSystemGetDispatcherResultF(void *file_system, uint32_t *result)
{
    if (find(file_system, "GetDispatcherResult"))
        memcpy(result, (uint8_t *)file_system + AT_DISPATCHER_RESULT, sizeof *result);
}

EXPORT void FspFileSystemSetDebugLogF(void *file_system, uint32_t mask)
{
    if (find(file_system, "SetDebugLog"))
        memcpy((uint8_t *)file_system + AT_DEBUG_LOG, &mask, sizeof mask);
}

/* Append an entry on the next multiple of 8, or the end mark; 0 where there is no room for it. */
EXPORT uint8_t FspFileSystemAddDirInfo(void *info, uint8_t *buffer, uint32_t length, uint32_t *used)
{
    uint32_t at = (*used + 7) & ~7u;
    uint16_t size = 0;
    if (info)
        memcpy(&size, info, sizeof size);
    uint32_t needed = info ? size : 2;
    if ((uint64_t)at + needed > length)
        return 0;
    if (info)
        memcpy(buffer + at, info, size);
    else
        memset(buffer + at, 0, 2);
    *used = at + needed;
    return 1;
}

/* What tests call. */

/* Fill in the file systems that are there, oldest first; return how many. */
EXPORT int test_volumes(void **found, int room)
{
    int count = 0;
    for (int i = 0; i < number_of_volumes && count < room; i++)
        if (!volumes[i].deleted)
            found[count++] = volumes[i].file_system;
    return count;
}

EXPORT void *test_parameters(void *file_system)
{
    struct volume *volume = find(file_system, "test_parameters");
    return volume ? volume->parameters : NULL;
}

EXPORT wchar_t *test_device(void *file_system)
{
    struct volume *volume = find(file_system, "test_device");
    return volume ? volume->device : L"";
}

EXPORT wchar_t *test_mountpoint(void *file_system)
{
    struct volume *volume = find(file_system, "test_mountpoint");
    return volume ? volume->mountpoint : L"";
}

EXPORT int test_is_running(void *file_system)
{
    for (int i = 0; i < number_of_volumes; i++)
        if (volumes[i].file_system == file_system)
            return volumes[i].running && !volumes[i].deleted;
    return 0;
}

/* Have a native thread call one of the operations; 0: done, 1: the dispatcher does not run, 2: it ended before. */
EXPORT int test_call(void *file_system, void *function, const uint64_t *arguments, int count, uint64_t *result)
{
    struct work work = {0};
    work.function = (operation)function;
    memcpy(work.arguments, arguments, sizeof *arguments * (count < ARGUMENTS ? count : ARGUMENTS));
    work.done = CreateEventW(NULL, TRUE, FALSE, NULL);
    struct volume *volume = NULL;
    AcquireSRWLockExclusive(&lock);
    for (int i = 0; i < number_of_volumes; i++)
        if (volumes[i].file_system == file_system && volumes[i].running && !volumes[i].deleted)
            volume = &volumes[i];
    if (volume) {
        *volume->last = &work;
        volume->last = &work.next;
        WakeAllConditionVariable(&changed);
    }
    ReleaseSRWLockExclusive(&lock);
    if (volume)
        WaitForSingleObject(work.done, INFINITE);
    CloseHandle(work.done);
    *result = work.result;
    return !volume ? 1 : work.cancelled ? 2 : 0;
}

EXPORT void test_driver_is_missing(int missing)
{
    driver_is_missing = missing;
}

EXPORT int test_is_driver_missing(void)
{
    return driver_is_missing;
}

EXPORT void test_letters_in_use(uint32_t bits)
{
    letters = bits;
}

EXPORT uint32_t test_get_letters_in_use(void)
{
    return letters;
}

/* Return what went wrong, as lines, and forget it. */
EXPORT void test_take_faults(char *text, int room)
{
    AcquireSRWLockExclusive(&lock);
    strncpy(text, faults, room - 1);
    text[room - 1] = 0;
    faults[0] = 0;
    ReleaseSRWLockExclusive(&lock);
}

/* What the extension imports and winfspy never calls. */

#define NOT_THERE(name) EXPORT uint32_t name(void) { fault(#name " is not there"); return NOT_IMPLEMENTED; }
NOT_THERE(FspAccessCheckEx) NOT_THERE(FspCallNamedPipeSecurely) NOT_THERE(FspCreateSecurityDescriptor)
NOT_THERE(FspDebugLog) NOT_THERE(FspDebugLogFT) NOT_THERE(FspDebugLogRequest)
NOT_THERE(FspDebugLogResponse) NOT_THERE(FspDebugLogSD) NOT_THERE(FspDebugLogSid)
NOT_THERE(FspDeleteSecurityDescriptor) NOT_THERE(FspDeleteSid) NOT_THERE(FspEventLog)
NOT_THERE(FspFileSystemAcquireDirectoryBuffer) NOT_THERE(FspFileSystemAddStreamInfo)
NOT_THERE(FspFileSystemCanReplaceReparsePoint) NOT_THERE(FspFileSystemDeleteDirectoryBuffer)
NOT_THERE(FspFileSystemEnterOperationF) NOT_THERE(FspFileSystemFillDirectoryBuffer)
NOT_THERE(FspFileSystemFindReparsePoint) NOT_THERE(FspFileSystemGetOperationContext)
NOT_THERE(FspFileSystemIsOperationCaseSensitiveF) NOT_THERE(FspFileSystemLeaveOperationF)
NOT_THERE(FspFileSystemOpCleanup) NOT_THERE(FspFileSystemOpClose) NOT_THERE(FspFileSystemOpCreate)
NOT_THERE(FspFileSystemOpEnter) NOT_THERE(FspFileSystemOpFileSystemControl)
NOT_THERE(FspFileSystemOpFlushBuffers) NOT_THERE(FspFileSystemOpLeave)
NOT_THERE(FspFileSystemOpOverwrite) NOT_THERE(FspFileSystemOpQueryDirectory)
NOT_THERE(FspFileSystemOpQueryInformation) NOT_THERE(FspFileSystemOpQuerySecurity)
NOT_THERE(FspFileSystemOpQueryStreamInformation) NOT_THERE(FspFileSystemOpQueryVolumeInformation)
NOT_THERE(FspFileSystemOpRead) NOT_THERE(FspFileSystemOpSetInformation)
NOT_THERE(FspFileSystemOpSetSecurity) NOT_THERE(FspFileSystemOpSetVolumeInformation)
NOT_THERE(FspFileSystemOpWrite) NOT_THERE(FspFileSystemOperationProcessIdF)
NOT_THERE(FspFileSystemReadDirectoryBuffer) NOT_THERE(FspFileSystemReleaseDirectoryBuffer)
NOT_THERE(FspFileSystemResolveReparsePoints) NOT_THERE(FspFileSystemSendResponse)
NOT_THERE(FspFileSystemSetDispatcherResultF) NOT_THERE(FspFileSystemSetMountPointEx)
NOT_THERE(FspFileSystemSetOperationF) NOT_THERE(FspFileSystemSetOperationGuardF)
NOT_THERE(FspFileSystemSetOperationGuardStrategyF) NOT_THERE(FspGetFileGenericMapping)
NOT_THERE(FspNtStatusFromWin32) NOT_THERE(FspPathCombine) NOT_THERE(FspPathPrefix)
NOT_THERE(FspPathSuffix) NOT_THERE(FspPosixDecodeWindowsPath) NOT_THERE(FspPosixDeletePath)
NOT_THERE(FspPosixEncodeWindowsPath) NOT_THERE(FspPosixMapPermissionsToSecurityDescriptor)
NOT_THERE(FspPosixMapPosixToWindowsPathEx) NOT_THERE(FspPosixMapSecurityDescriptorToPermissions)
NOT_THERE(FspPosixMapSidToUid) NOT_THERE(FspPosixMapUidToSid) NOT_THERE(FspPosixMapWindowsToPosixPathEx)
NOT_THERE(FspServiceAcceptControl) NOT_THERE(FspServiceAllowConsoleMode)
NOT_THERE(FspServiceContextCheck) NOT_THERE(FspServiceCreate) NOT_THERE(FspServiceDelete)
NOT_THERE(FspServiceGetExitCode) NOT_THERE(FspServiceIsInteractive) NOT_THERE(FspServiceLog)
NOT_THERE(FspServiceLoop) NOT_THERE(FspServiceRequestTime) NOT_THERE(FspServiceRunEx)
NOT_THERE(FspServiceSetExitCode) NOT_THERE(FspServiceStop) NOT_THERE(FspSetSecurityDescriptor)
NOT_THERE(FspWin32FromNtStatus)
