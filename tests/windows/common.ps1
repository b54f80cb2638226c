# What the scripts beside this one share: virtual disks, the command line, comparing files.
# For PowerShell 7.4 and newer, which hands on the bytes of programs as they are, run by an administrator.

Set-StrictMode -Version Latest
$ErrorActionPreference = 'Stop'
$PSNativeCommandUseErrorActionPreference = $false  # robocopy ends with 1 where it copied something

# Windows' own folders: they differ from volume to volume, and are not for everybody.
$Own = '\\(System Volume Information|\$RECYCLE\.BIN)(\\|$)'
$Files = '!Directory+!ReparsePoint'

function Write-Step([string]$What) {
    Write-Host "--- $What"
}

function Assert-True([bool]$Condition, [string]$What) {
    if (-not $Condition) { throw "wrong: $What" }
}

# Run the command line; an exit code other than 0 ends the script.
function Invoke-Imagefs {
    & imagefs.exe @args
    if ($LASTEXITCODE -ne 0) { throw "imagefs $args ended with code $LASTEXITCODE" }
}

function Invoke-Diskpart([string[]]$Commands) {
    $file = New-TemporaryFile
    try {
        Set-Content -LiteralPath $file -Value $Commands -Encoding ascii
        & diskpart.exe /s $file.FullName | Out-Host
        if ($LASTEXITCODE -ne 0) { throw "diskpart ended with code $LASTEXITCODE" }
    }
    finally {
        Remove-Item -LiteralPath $file
    }
}

# Make and attach a virtual disk, and return its number. New-VHD would need Hyper-V.
function New-Vhd([string]$Path, [int]$Megabytes) {
    Invoke-Diskpart @(
        "create vdisk file=`"$Path`" maximum=$Megabytes type=expandable"
        "select vdisk file=`"$Path`""
        'attach vdisk'
    )
    $number = (Get-DiskImage -ImagePath $Path).Number
    Set-Disk -Number $number -IsOffline $false
    Set-Disk -Number $number -IsReadOnly $false
    $number
}

function Remove-Vhd([string]$Path) {
    if (Test-Path -LiteralPath $Path) {
        Dismount-DiskImage -ImagePath $Path | Out-Null
        Remove-Item -LiteralPath $Path
    }
}

# Give an empty disk one NTFS volume.
function Add-Volume([int]$Disk, [char]$Letter, [string]$Label) {
    Initialize-Disk -Number $Disk -PartitionStyle GPT
    New-Partition -DiskNumber $Disk -UseMaximumSize -DriveLetter $Letter | Out-Null
    Format-Volume -DriveLetter $Letter -FileSystem NTFS -NewFileSystemLabel $Label -Confirm:$false | Out-Null
}

function Write-Random([string]$Path, [int]$Length, [int]$Seed) {
    $bytes = [byte[]]::new($Length)
    [Random]::new($Seed).NextBytes($bytes)
    [IO.File]::WriteAllBytes($Path, $bytes)
}

# Fill a volume with what copies and mounts are compared by.
function Add-Files([string]$Root) {
    New-Item -ItemType Directory "$Root\many", "$Root\deep\er\and\deeper", "$Root\empty" | Out-Null
    Set-Content -LiteralPath "$Root\marker.txt" -Value 'the volume that is meant'
    Write-Random "$Root\big.bin" 30000001 1
    foreach ($number in 1..500) { Write-Random "$Root\many\file $number.bin" (37 * $number) $number }
    Write-Random "$Root\deep\er\and\deeper\file.bin" 70000 501
    Set-Content -LiteralPath "$Root\names with `u{e4} and `u{1F600}.txt" -Value 'a name'
    New-Item -ItemType File "$Root\nothing.txt" | Out-Null
    Set-Content -LiteralPath "$Root\marker.txt" -Stream 'note' -Value 'a stream'
    New-Item -ItemType HardLink -Path "$Root\second name.txt" -Target "$Root\marker.txt" | Out-Null
    Set-Content -LiteralPath "$Root\hidden.txt" -Value 'hidden'
    [IO.File]::SetAttributes("$Root\hidden.txt", 'Hidden, System, Archive')
    [IO.File]::SetCreationTimeUtc("$Root\hidden.txt", [DateTime]::new(2011, 2, 3, 4, 5, 6, 'Utc'))
    [IO.File]::SetLastWriteTimeUtc("$Root\hidden.txt", [DateTime]::new(2012, 3, 4, 5, 6, 7, 'Utc'))
    & fsutil.exe file createNew "$Root\sparse.bin" 0 | Out-Null
    & fsutil.exe sparse setFlag "$Root\sparse.bin"
    $file = [IO.File]::OpenWrite("$Root\sparse.bin")
    $file.Position = 40000000
    $file.Write([byte[]](1..200), 0, 200)
    $file.SetLength(64000000)
    $file.Close()
    Set-Content -LiteralPath "$Root\secret.txt" -Value 'not for everybody'
    & icacls.exe "$Root\secret.txt" /inheritance:r /grant:r '*S-1-5-32-544:(F)' '*S-1-5-18:(R)' | Out-Host
    Assert-True ($LASTEXITCODE -eq 0) 'icacls could not change rights'
}

# Return the SHA-256 of every file below a folder, by its path there.
function Get-Hashes([string]$Root) {
    $found = @{}
    $base = $Root.TrimEnd('\')
    Get-ChildItem -LiteralPath "$base\" -Recurse -Force -Attributes $Files -ErrorAction SilentlyContinue |
        Where-Object FullName -NotMatch $Own |
        ForEach-Object {
            $found[$_.FullName.Substring($base.Length)] = (Get-FileHash -LiteralPath $_.FullName).Hash
        }
    $found
}

# Return a file's times, and whether it is read-only, hidden, of the system, to be archived.
function Get-Kept([string]$Path) {
    $file = Get-Item -LiteralPath $Path -Force
    $file.CreationTimeUtc.Ticks, $file.LastWriteTimeUtc.Ticks, ([int]$file.Attributes -band 0x27) -join ' '
}

function Assert-SameHashes([hashtable]$Wanted, [hashtable]$Found, [string]$What) {
    $names = @($Wanted.Keys) + @($Found.Keys) | Sort-Object -Unique
    $different = @($names | Where-Object { $Wanted[$_] -ne $Found[$_] })
    Assert-True ($Wanted.Count -gt 500) 'there are too few files to compare'
    Assert-True ($different.Count -eq 0) "$What differs in: $($different -join ', ')"
    Write-Host "$($Wanted.Count) files are the same: $What"
}

# Return the path in an image's tree of the volume that holds marker.txt, as disk2/p2.
function Find-Volume([string]$Image) {
    foreach ($disk in (Get-Names $Image '')) {
        foreach ($partition in (Get-Names $Image $disk)) {
            $names = Get-Names $Image "$disk/$partition" 'file'
            if ($names -contains 'marker.txt') { return "$disk/$partition" }
        }
    }
    throw "$Image has no volume with marker.txt"
}

function Get-Names([string]$Image, [string]$Path, [string]$Type = 'dir') {
    $listed = & imagefs.exe ls --json $Image $Path 2>$null
    if ($LASTEXITCODE -ne 0) { return @() }  # a partition without files
    @(($listed | ConvertFrom-Json).entries | Where-Object type -EQ $Type | ForEach-Object name)
}

function Find-Image([string]$Folder) {
    $images = @(Get-ChildItem -LiteralPath $Folder -File | Where-Object Extension -In '.mrimgx', '.mrbakx')
    Assert-True ($images.Count -eq 1) "one image is expected in $Folder, there are $($images.Count)"
    $images[0].FullName
}
